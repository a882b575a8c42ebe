"""The interfaces of a server: by name, in versions."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

from agentlace.inference import specs
from agentlace.inference.interface import Interface


class Catalogue(Mapping[str, Interface]):
    """Interfaces by name, each in one or several versions. Thread-safe.

    A mapping from what clients may call: each ``name@version``, and each name by itself, which
    stands for its default version. A name with an @ of its own goes before a version.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: dict[str, dict[str, Interface]] = {}
        self._defaults: dict[str, Interface] = {}
        self._callable: dict[str, Interface] = {}

    def add(self, interface: Interface, default: bool = True) -> None:
        """Add an interface, in place of one of the same name and version.

        Args:
            interface: what to add.
            default: whether calls that name no version get it from now on. The first version of a
                name is the default in any case.
        """
        name = interface.name
        with self._lock:
            versions = self._versions.setdefault(name, {})
            before = versions.get(interface.version)
            versions[interface.version] = interface
            if default or name not in self._defaults or self._defaults[name] is before:
                self._defaults[name] = interface
            self._callable = self._all()

    def _all(self) -> dict[str, Interface]:
        versions = [interface for found in self._versions.values() for interface in found.values()]
        return {**{interface.title: interface for interface in versions}, **self._defaults}

    @property
    def names(self) -> list[str]:
        """Return the names, sorted."""
        return sorted(self._defaults)

    def __getitem__(self, asked: str) -> Interface:
        """Return what is called so; raises KeyError."""
        return self._callable[asked]

    def __contains__(self, asked: object) -> bool:
        """Whether something is called so."""
        return asked in self._callable

    def __iter__(self) -> Iterator[str]:
        """Iterate over all that can be called."""
        return iter(self._callable)

    def __len__(self) -> int:
        """Return how much can be called."""
        return len(self._callable)

    def describe(self) -> list[dict[str, Any]]:
        """Return the spec of every version of every name, as it travels; sorted by name."""
        with self._lock:
            return [
                specs.told(
                    *(name, version, interface is self._defaults[name]),
                    *(interface.shapes, interface.uses_weights),
                )
                for name, versions in sorted(self._versions.items())
                for version, interface in versions.items()
            ]

    def unknown(self, asked: str) -> dict[str, Any]:
        """Return what answers a call of an interface that is not there."""
        with self._lock:
            known = [self._shown(name) for name in sorted(self._versions)]
        listed = ", ".join(known) or "none"
        return {
            "success": False,
            "message": f"unknown interface {asked!r}; this server has {listed}",
        }

    def _shown(self, name: str) -> str:
        versions = list(self._versions[name])
        if len(versions) == 1:
            return repr(name)
        default = self._defaults[name].version
        return f"{name!r} (versions {', '.join(versions)}; {default} is the default)"
