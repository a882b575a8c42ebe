"""Named arrays with a leading dimension of rows, in numpy or on a JAX device.

Both kinds store and return the same rows for the same positions; a JAX store keeps float64 as
float32 unless JAX is told to keep 64 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from agentlace.data.columns import Array, nested
from agentlace.data.ring import take_rows, write_rows
from agentlace.errors import MissingExtra

Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]


class Storage:
    """Base of both kinds.

    Attributes:
        arrays: by name, each of shape (capacity, ...).
        reads_while_written: whether rows may be taken while others are written.
    """

    arrays: dict[str, Any]
    reads_while_written: bool

    def write(self, columns: Mapping[str, Array], at: int, n: int) -> None:
        """Write ``n`` rows from a position on, round the end if need be."""
        raise NotImplementedError

    def take(self, name: str, positions: Array) -> Any:
        """Return rows by position, a copy."""
        raise NotImplementedError

    def put(self, value: Array) -> Any:
        """Return a value where taken rows are."""
        raise NotImplementedError

    def fill(self, columns: Mapping[str, Array], n: int) -> None:
        """Replace the first ``n`` rows."""
        raise NotImplementedError

    def names_of(self, source: str) -> list[str]:
        """Return the names of the arrays that make up a source: its own, or those below it.

        Raises:
            ValueError: there are none.
        """
        names = [name for name in self.arrays if f"{name}/".startswith(f"{source}/")]
        if not names:
            known = ", ".join(self.arrays)
            raise ValueError(f"nothing is stored as {source!r}; there are: {known}")
        return names

    def fetch(self, source: str, positions: Array) -> Any:
        """Return a source's rows by position: an array, or a nested dict of them."""
        if source in self.arrays:
            return self.take(source, positions)
        names = self.names_of(source)
        return nested({name[len(source) + 1 :]: self.take(name, positions) for name in names})


class NumpyStorage(Storage):
    """Arrays in this process's memory. Rows may be taken while others are written."""

    reads_while_written = True

    def __init__(self, capacity: int, shapes: Shapes) -> None:
        self.arrays = {
            name: np.zeros((capacity, *shape), dtype) for name, (shape, dtype) in shapes.items()
        }

    def write(self, columns: Mapping[str, Array], at: int, n: int) -> None:
        """Write ``n`` rows from a position on, round the end if need be."""
        for name, values in columns.items():
            write_rows(self.arrays[name], values, at)

    def take(self, name: str, positions: Array) -> Array:
        """Return rows by position, a copy."""
        return take_rows(self.arrays[name], positions)

    def put(self, value: Array) -> Any:
        """Return a value where taken rows are."""
        return value

    def fill(self, columns: Mapping[str, Array], n: int) -> None:
        """Replace the first ``n`` rows."""
        self.write(columns, 0, n)


class JaxStorage(Storage):
    """Arrays on one JAX device. Not to be read while it is written.

    Args:
        capacity: in rows.
        shapes: of the arrays by name, and their dtypes.
        device: JAX's first CPU device if None.

    Raises:
        MissingExtra: JAX is not installed.
    """

    reads_while_written = False

    def __init__(self, capacity: int, shapes: Shapes, device: Any = None) -> None:
        try:
            import jax
        except ImportError as error:
            raise MissingExtra("jax", "jax") from error
        self._jax = jax
        self._device = jax.devices("cpu")[0] if device is None else device
        self._capacity = capacity
        self.arrays = {
            name: self.put(np.zeros((capacity, *shape), dtype))
            for name, (shape, dtype) in shapes.items()
        }
        # The old arrays' memory is used for the new ones.
        self._write = jax.jit(_written, donate_argnums=0)
        self._take = jax.jit(_taken)

    def write(self, columns: Mapping[str, Array], at: int, n: int) -> None:
        """Write ``n`` rows from a position on; compiled once for each power of two of rows."""
        padded = np.minimum(np.arange(1 << (n - 1).bit_length()), n - 1)
        values = {
            name: np.asarray(column, self.arrays[name].dtype)[padded]
            for name, column in columns.items()
        }
        positions = ((at + padded) % self._capacity).astype(np.int32)
        self.arrays = self._write(self.arrays, positions, values)

    def take(self, name: str, positions: Array) -> Any:
        """Return rows by position, on the device."""
        return self._take(self.arrays[name], positions.astype(np.int32))

    def put(self, value: Array) -> Any:
        """Return a value on the device."""
        canonical = self._jax.dtypes.canonicalize_dtype(value.dtype)
        with self._jax.default_device(self._device):
            return self._jax.numpy.array(value, canonical)

    def fill(self, columns: Mapping[str, Array], n: int) -> None:
        """Replace the first ``n`` rows."""
        for name, values in columns.items():
            array = np.array(self.arrays[name])
            array[:n] = values
            self.arrays[name] = self.put(array)


def make_storage(
    capacity: int, shapes: Shapes, device: Any = None, use_jax: bool = False
) -> Storage:
    """Return a storage in numpy, or in JAX if asked for; see :class:`JaxStorage`."""
    return JaxStorage(capacity, shapes, device) if use_jax else NumpyStorage(capacity, shapes)


def _written(arrays: dict[str, Any], positions: Any, values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: array.at[positions].set(values[name]) if name in values else array
        for name, array in arrays.items()
    }


def _taken(array: Any, positions: Any) -> Any:
    return array.at[positions].get(mode="clip")
