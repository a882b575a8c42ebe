"""The fixtures of running systems."""

from tests.operating.conftest import found, look, running

__all__ = ["found", "look", "running"]
