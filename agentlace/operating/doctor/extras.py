"""Which optional parts are not installed here, and what each is for."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from agentlace.operating.doctor.findings import Finding, info, ok
from agentlace.operating.doctor.patient import Patient

EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "cli": (("typer", "rich", "cryptography"), "this command, and certificates"),
    "compress": (("lz4", "zstandard"), "compressed frames"),
    "gym": (("gymnasium",), "environments over the network"),
    "image": (("cv2",), "images as PNG and JPEG"),
    "jax": (("jax", "flax", "optax"), "JAX arrays and Flax networks, the example agents"),
    "memory": (("fakeredis",), "memory://, a broker inside a process"),
    "metrics": (("prometheus_client",), "numbers for Prometheus"),
    "minari": (("minari",), "datasets of Minari"),
    "openpi": (("websockets",), "the protocol of openpi"),
    "rlds": (("tensorflow_datasets", "cv2"), "recording datasets, and reading them with TFDS"),
    "tensorboard": (("tensorboardX",), "curves in TensorBoard"),
    "web": (("starlette", "uvicorn"), "the dashboard"),
}
"""Each extra's modules, and what it is for."""


def extras(patient: Patient) -> Iterator[Finding]:
    """Look which extras are missing on this machine."""
    missing = {extra: told for extra, told in EXTRAS.items() if not all(map(_is_here, told[0]))}
    if len(missing) < len(EXTRAS):
        here = ", ".join(extra for extra in EXTRAS if extra not in missing)
        yield ok(f"installed here: {here}")
    for extra, (_, purpose) in missing.items():
        yield info(f"not here: {extra}, for {purpose}", f"pip install 'agentlace[{extra}]'")


def _is_here(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
