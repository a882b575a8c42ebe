"""Data augmentation on a device, as a transform of prefetched batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentlace.data.columns import leaves_of
from agentlace.errors import MissingExtra, SchemaMismatch


class RandomCrop:
    """Shifts images by up to ``padding`` pixels, their borders repeated (DrQ, arXiv:2004.13649).

    All frames of one transition's leaf are shifted alike, those of different leaves apart. Runs
    as compiled JAX code where the batch is; for one thread.

    Args:
        paths: of the images in a batch, such as ``observations/wrist``, each of shape
            (n, ..., height, width, channels).
        padding: in pixels.
        seed: of the shifts.

    Raises:
        MissingExtra: JAX is not installed.
    """

    def __init__(self, paths: Sequence[str], padding: int = 4, seed: int = 0) -> None:
        try:
            import jax
        except ImportError as error:
            raise MissingExtra("jax", "jax") from error
        self._paths = list(paths)
        self._split = jax.random.split
        self._key = jax.random.PRNGKey(seed)
        self._crop = jax.jit(lambda images, key: _cropped(images, key, padding))

    def __call__(self, batch: Any) -> Any:
        """Return the batch with shifted images; the first item of a tuple is the batch.

        Raises:
            SchemaMismatch: an image is not in the batch.
        """
        if isinstance(batch, tuple):
            return (self(batch[0]), *batch[1:])
        for path in self._paths:
            if path not in dict(leaves_of(batch)):
                raise SchemaMismatch(path, "missing from the batch, but to be cropped")
            batch = _replaced(batch, path.split("/"), self._shifted)
        return batch

    def _shifted(self, images: Any) -> Any:
        self._key, key = self._split(self._key)
        return self._crop(images, key)


def _replaced(tree: Any, path: Sequence[str], function: Any) -> Any:
    if not path:
        return function(tree)
    return {**tree, path[0]: _replaced(tree[path[0]], path[1:], function)}


def _cropped(images: Any, key: Any, padding: int) -> Any:
    import jax

    flat = images.reshape(len(images), -1, *images.shape[-3:])
    around = (padding, padding)
    padded = jax.numpy.pad(flat, ((0, 0), (0, 0), around, around, (0, 0)), mode="edge")
    shifts = jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1)

    def crop(frames: Any, shift: Any) -> Any:
        start = (0, shift[0], shift[1], 0)
        return jax.lax.dynamic_slice(frames, start, (flat.shape[1], *flat.shape[2:]))

    return jax.vmap(crop)(padded, shifts).reshape(images.shape)
