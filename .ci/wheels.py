"""Builds sdist and wheels, and uses the wheels in environments of their own.

    python .ci/wheels.py            Python 3.10 and 3.13, those of them that are here
    python .ci/wheels.py 3.12

There are two wheels: one of pure Python for everywhere, and, where there is a compiler, one with
the compiled module for this platform and Python 3.11 on, which pip prefers. Each Python uses the
one that it would be given. What is built stays in build/dist. Needs the package `build`; `make
wheels` has it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "build" / "dist"
VERSIONS = ("3.10", "3.13")
SAFELY = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
ALWAYS_INSIDE = (
    "agentlace/py.typed",
    "agentlace/_broker/redis.conf",
    "agentlace/_broker/users.acl",
)
PROBE = """
import sys
import agentlace
from agentlace import AgentlaceError, BrokerURL, InferenceClient, InferenceServer, MissingExtra
from agentlace import native
from agentlace.transport.connection import Broker
from agentlace.transport.server_process import redis_conf
from agentlace.transport.secured import users_template

assert "site-packages" in agentlace.__file__, agentlace.__file__
assert redis_conf().is_file() and "user actor" in users_template()
for name in ("typer", "gymnasium", "cv2", "jax", "fakeredis", "starlette"):
    assert name not in sys.modules
try:
    agentlace.GymEnvClient
except MissingExtra as error:
    assert "pip install 'agentlace[gym]'" in str(error), error
else:
    raise AssertionError("gymnasium is here")
with InferenceServer(5600) as server:
    server.register_interface("double", lambda x: 2 * x)
    server.start(threaded=True)
    with InferenceClient("localhost", 5600, timeout_ms=10000) as client:
        assert client.call("double", 21) == 42, client.last_error
channel = Broker(BrokerURL.resolve(None)).channel()
try:
    channel.call("SHUTDOWN", "NOSAVE")  # it would stay for 30 s, in a folder that goes
except AgentlaceError:
    pass
kind = "pure" if native.trade is None else "compiled"
print("the broker of the wheel answers,", agentlace.__version__, kind)
"""


def main(versions: list[str]) -> int:
    begin = time.monotonic()
    environment = dict(os.environ)
    for name in ("PYTHONPATH", "AGENTLACE_BROKER", "AGENTLACE_NAMESPACE"):
        environment.pop(name, None)
    pure, compiled = build(environment)
    if compiled is None:
        say("no compiler here: there is the wheel of pure Python only")

    def try_one(version: str) -> str:
        fits = compiled is not None and pair_of(version) >= (3, 11)
        return use(compiled if fits else pure, version, environment)

    with ThreadPoolExecutor() as pool:
        for told in pool.map(try_one, versions or VERSIONS):
            say(told)
    say(f"wheels and sdist are in {DIST.relative_to(ROOT)} ({time.monotonic() - begin:.0f} s)")
    return 0


def build(environment: dict[str, str]) -> tuple[Path, Path | None]:
    """Build the sdist, and the wheels from it, so that what it lacks is noticed.

    Returns:
        The wheel of pure Python; the one with the compiled module, None without a compiler.
    """
    shutil.rmtree(DIST, ignore_errors=True)
    pins = constraints(".".join(map(str, sys.version_info[:2])))
    pinned = {"PIP_CONSTRAINT": str(pins), "PIP_BUILD_CONSTRAINT": str(pins)} if pins else {}
    command = [sys.executable, "-m", "build", "--outdir", str(DIST)]
    run([*command, str(ROOT)], {**environment, **pinned})
    (sdist,) = DIST.glob("*.tar.gz")
    with tempfile.TemporaryDirectory(prefix="agentlace-sdist-") as folder:
        shutil.unpack_archive(sdist, folder, **SAFELY)
        (source,) = Path(folder).iterdir()
        run([*command, "--wheel", str(source)], {**environment, **pinned, "AGENTLACE_PURE": "1"})
    wheels = {path.name.endswith("-py3-none-any.whl"): path for path in DIST.glob("*.whl")}
    tracked = run(["git", "-C", str(ROOT), "ls-files", "agentlace"], environment).split()
    for wheel in wheels.values():
        inside = set(zipfile.ZipFile(wheel).namelist())
        missing = sorted({*ALWAYS_INSIDE, *tracked} - inside)
        assert not missing, f"not in {wheel.name}: {missing}"
        has_module = any(name.startswith("agentlace/_native.") and ".so" in name for name in inside)
        assert has_module == ("none-any" not in wheel.name), f"{wheel.name}: {has_module}"
        say(f"{wheel.name}: {wheel.stat().st_size >> 10} KiB, {len(inside)} files")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "hatch_build.py", "LICENSE", "broker/redis.conf"}
    missing = sorted({*tracked, *wanted} - names)
    assert not missing, f"not in the sdist: {missing}"
    return wheels[True], wheels.get(False)


def use(wheel: Path, version: str, environment: dict[str, str]) -> str:
    """Use the wheel in an environment of its own; returns what came of it."""
    python = interpreter(version)
    if python is None:
        return f"Python {version}: skipped, there is none here"
    with tempfile.TemporaryDirectory(prefix="agentlace-wheel-") as folder:
        # Where this runs nothing of the checkout can be imported, and the port is its own.
        environment = {**environment, "AGENTLACE_BROKER": f"redis://127.0.0.1:{free_port()}"}
        venv = Path(folder) / "venv"
        run([str(python), "-m", "venv", str(venv)], environment)
        pins = constraints(version)
        pip = [str(venv / "bin/python"), "-m", "pip", "install", "-qq", "--no-input"]
        pip += ["--disable-pip-version-check", *(["--constraint", str(pins)] if pins else [])]
        run([*pip, str(wheel)], environment, folder)
        told = run([str(venv / "bin/python"), "-c", PROBE], environment, folder)
        assert told.split()[-1] == ("pure" if "none-any" in wheel.name else "compiled"), told
        without = subprocess.run(
            [venv / "bin/agentlace", "version"], capture_output=True, text=True, cwd=folder
        )
        assert without.returncode == 1 and "Traceback" not in without.stderr, without
        assert "agentlace[cli]" in without.stderr, without
        run([*pip, f"{wheel}[cli]"], environment, folder)
        found = run([str(venv / "bin/agentlace"), "version"], environment, folder).strip()
        assert found == wheel.name.split("-")[1], found
        return f"Python {version}: {told.strip()}; agentlace version says {found}"


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def constraints(version: str) -> Path | None:
    path = ROOT / "constraints" / f"py{version}.txt"
    return path if path.exists() else None


def interpreter(version: str) -> Path | None:
    """Return a Python of this version: from PATH, or one of pyenv's; None if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = shutil.which(f"python{version}")
    candidates = [
        *sorted(pyenv.glob(f"{version}.*/bin/python{version}")),
        *sorted(Path(sys.base_prefix).parent.glob(f"{version}.*/bin/python{version}")),
        *([found] if found else []),
    ]
    for candidate in candidates:
        code = f"import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != {pair_of(version)})"
        if subprocess.run([candidate, "-c", code], capture_output=True).returncode == 0:
            return Path(candidate)
    return None


def pair_of(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)


def run(command: list[str], environment: dict[str, str], folder: str | None = None) -> str:
    """Run a command and return its output; show it and end if it fails."""
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(
            f"{' '.join(command[:4])} … ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
