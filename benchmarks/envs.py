"""The peers' Python environments: one each where a peer does not fit ours, below ``.envs/``.

An environment is made when ``--install`` is given and a row first needs it. One that cannot be
made is not tried again in the same run, and the rows go on without that peer.
"""

import contextlib
import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import Unavailable

FOLDER = Path(__file__).resolve().parent / ".envs"
INSTALL_TIMEOUT_S = 1200.0
_failed = {}


@dataclass(frozen=True)
class Environment:
    """What to install.

    Attributes:
        requirements: for pip.
        modules: if all can be imported here, this interpreter serves and nothing is installed.
        pythons: versions that the requirements have wheels for, the best first.
    """

    requirements: tuple[str, ...]
    modules: tuple[str, ...] = ()
    pythons: tuple[str, ...] = ("3.11", "3.12", "3.10", "3.13")


ENVIRONMENTS = {
    "wire": Environment(("pyzmq", "lz4", "numpy"), ("zmq", "lz4")),
    # TensorFlow 2.15 needs numpy 1; Reverb's imports need pkg_resources.
    "reverb": Environment(
        ("dm-reverb[tensorflow]==0.14.0", "numpy==1.26.*", "setuptools<81"),
        pythons=("3.11", "3.10"),
    ),
    "rpc": Environment(("openpi-client", "websockets", "grpcio")),
    "portal": Environment(("portal",)),
    "ray": Environment(("ray", "numpy")),
}


def python_of(name, install=False):
    """Return the interpreter of an environment, making it if that is allowed.

    Raises:
        Unavailable: there is none; it says why.
    """
    environment = ENVIRONMENTS[name]
    if environment.modules and all(map(importlib.util.find_spec, environment.modules)):
        return sys.executable
    folder, stamp = FOLDER / name, FOLDER / f"{name}.installed"
    wanted = "\n".join(environment.requirements)
    if not stamp.exists() or stamp.read_text() != wanted:
        if not install:
            raise Unavailable(f"environment {name!r} is not installed here (--install makes it)")
        if name in _failed:
            raise _failed[name].with_traceback(None)
        try:
            _make(folder, environment)
        except Unavailable as error:
            _failed[name] = error
            raise
        stamp.write_text(wanted)
    return str(folder / "bin" / "python")


def _make(folder, environment):
    python = _find_python(environment.pythons)
    print(f"==> making {folder} ({', '.join(environment.requirements)})", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "-qq"]
    pip += ["--disable-pip-version-check", "--no-input"]
    for command in ([python, "-m", "venv", folder], [*pip, *environment.requirements]):
        try:
            subprocess.run(
                command, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S
            )
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines() or ["no output"]
            raise Unavailable(f"it cannot be installed here: {lines[-1][:200]}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"it cannot be installed here: {error}") from error


def _find_python(versions):
    """Return an interpreter of one of these versions: ours, from PATH, or pyenv's."""
    if "{}.{}".format(*sys.version_info) in versions:
        return getattr(sys, "_base_executable", sys.executable)
    for version in versions:
        pyenv = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
        for candidate in (shutil.which(f"python{version}"), *map(str, pyenv)):
            if candidate and _runs(candidate, version):
                return candidate
    raise Unavailable(f"it needs Python {' or '.join(versions)}, and there is none here")


def _runs(python, version):
    """Whether it is really that version: pyenv's shims answer for versions that are not there."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=20)
        return done.stdout.strip() == version
    return False
