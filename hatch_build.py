"""Compiles agentlace/_native.c where there is a compiler; without one the wheel is pure Python.

Both kinds of wheel have the same modules and do the same: see agentlace/native.py. One of CPython's
stable ABI serves all Pythons from 3.11 on; 3.10, whose stable ABI lacks the buffer protocol, gets
one of its own. AGENTLACE_PURE=1 builds the wheel for everywhere.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "agentlace/_native.c"
HAS_STABLE_ABI = sys.version_info >= (3, 11)
FLAGS = ["-DPy_LIMITED_API=0x030B0000"] if HAS_STABLE_ABI else []


class NativeBuildHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version, build_data):
        if os.environ.get("AGENTLACE_PURE") == "1" or sys.implementation.name != "cpython":
            return
        name = (
            "_native.abi3.so"
            if HAS_STABLE_ABI
            else f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
        )
        folder = Path(self.root, "agentlace") if version == "editable" else Path(tempfile.mkdtemp())
        if not compiled(Path(self.root, SOURCE), folder / name):
            return
        if version != "editable":
            build_data["force_include"][str(folder / name)] = f"agentlace/{name}"
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        python = f"cp{sys.version_info.major}{sys.version_info.minor}"
        build_data["tag"] = (
            f"cp311-abi3-{platform}" if HAS_STABLE_ABI else f"{python}-{python}-{platform}"
        )


def compiled(source, target):
    """Compile a module; returns whether that worked."""
    linker = shlex.split(sysconfig.get_config_var("LDSHARED") or "cc -shared")
    if "CC" in os.environ:
        linker[:1] = shlex.split(os.environ["CC"])
    command = [*linker, "-O2", "-fPIC", "-pthread", *FLAGS, f"-I{sysconfig.get_path('include')}"]
    part = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        subprocess.run([*command, str(source), "-o", str(part)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", b"").decode(errors="replace").strip() or error
        print(f"agentlace is installed without its compiled part: {told}", file=sys.stderr)
        return False
    os.replace(part, target)  # a process may have the one before in use
    return True
