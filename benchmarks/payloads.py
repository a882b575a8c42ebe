"""What is sent: made from seeds, so that every contestant moves the same bytes. Numpy only."""

import functools

import numpy as np

OBSERVATION_SIZE, ACTION_SIZE = 17, 6
"""Of HalfCheetah."""
CAMERAS, CAMERA_SHAPE = ("front", "wrist"), (128, 128, 3)


def noise(nbytes, seed=0):
    """Return bytes that no compressor makes smaller, as a camera's are."""
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def blob(size):
    return {"x": noise(size)}


def wide(leaves):
    """Return a tree of many small arrays."""
    rng = np.random.default_rng(0)
    return {f"leaf{i}": rng.normal(size=8).astype(np.float32) for i in range(leaves)}


def policy_request(_=None):
    image = (224, 224, 3)
    return {
        "observation/image": noise(np.prod(image), 1).reshape(image),
        "observation/wrist_image": noise(np.prod(image), 2).reshape(image),
        "observation/state": np.random.default_rng(3).normal(size=8).astype(np.float32),
    }


def policy_reply():
    return {"actions": np.random.default_rng(4).normal(size=(50, 7)).astype(np.float32)}


_MAKERS = {"blob": blob, "wide": wide, "policy": policy_request}


@functools.lru_cache(maxsize=1)
def make(kind, size):
    """Return a request's payload: ``size`` bytes, leaves, or whatever the kind says."""
    return _MAKERS[kind](size)


@functools.lru_cache(maxsize=2)
def observation(size):
    return {"image": noise(size, 5)}


def cheetah_rows(n):
    """Return transitions of HalfCheetah's shapes and dtypes, no two arrays the same."""
    rng = np.random.default_rng(6)
    return [
        {
            "observations": rng.normal(size=OBSERVATION_SIZE),
            "actions": rng.uniform(-1, 1, ACTION_SIZE).astype(np.float32),
            "next_observations": rng.normal(size=OBSERVATION_SIZE),
            "rewards": np.float32(rng.normal()),
            "masks": np.float32(1.0),
            "dones": False,
        }
        for _ in range(n)
    ]


def image_rows(n):
    """Return transitions of an unbroken episode: a row's next frame is the next row's frame."""
    rng = np.random.default_rng(7)
    shape = (n + 1, *CAMERA_SHAPE)
    frames = {name: list(rng.integers(0, 256, shape, np.uint8)) for name in CAMERAS}
    observations = [{name: frames[name][i].copy() for name in CAMERAS} for i in range(n + 1)]
    return [
        {
            "observations": observations[i],
            "actions": rng.uniform(-1, 1, ACTION_SIZE).astype(np.float32),
            "next_observations": observations[i + 1],
            "rewards": np.float32(rng.normal()),
            "masks": np.float32(1.0),
            "dones": False,
        }
        for i in range(n)
    ]


def camera_rows(n):
    """Return transitions as :func:`image_rows` does, of a scene that moves, with sensor noise."""
    rng = np.random.default_rng(8)
    height, width, _ = CAMERA_SHAPE
    y, x = np.mgrid[0:height, 0:width]

    def frame(i):
        scene = [np.sin((x + i) / 17), np.cos((y - i) / 23), np.sin((x + y + i) / 31)]
        noisy = 128 + 80 * np.stack(scene, -1) + rng.normal(0, 3, CAMERA_SHAPE)
        return np.clip(noisy, 0, 255).astype(np.uint8)

    observations = [{name: frame(i) for name in CAMERAS} for i in range(n + 1)]
    return [
        {**row, "observations": before, "next_observations": after}
        for row, before, after in zip(
            cheetah_rows(n), observations[:-1], observations[1:], strict=True
        )
    ]


ROWS = {"cheetah": cheetah_rows, "images": image_rows}


def network(nbytes, seed, leaves=10):
    """Return a tree of float32 leaves that together have about ``nbytes``."""
    rng = np.random.default_rng(seed)
    size = nbytes // 4 // leaves
    return {f"layer{i}": {"kernel": rng.standard_normal(size, np.float32)} for i in range(leaves)}
