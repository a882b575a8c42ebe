"""``agentlace demos convert``: pickled demonstrations are read, and nothing in them is run."""

import collections
import contextlib
import fractions
import io
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from agentlace.cli import demos, main, pickled
from agentlace.data import ReplayBuffer
from agentlace.data.demos import load_demos

DEADLINE_S = 60.0
PROTOCOLS = (2, 3, 4, 5)


def observation(rng):
    return {
        "state": rng.normal(size=(1, 19)).astype(np.float32),
        "wrist": rng.integers(256, size=(1, 128, 128, 3), dtype=np.uint8),
    }


def transitions(n=3, seed=0):
    """As HIL-SERL records them."""
    rng = np.random.default_rng(seed)
    return [
        {
            "observations": observation(rng),
            "actions": rng.normal(size=7),
            "next_observations": observation(rng),
            "rewards": float(i) if i else 0,
            "masks": 1.0 - (i == n - 1),
            "dones": np.bool_(i == n - 1),
            "infos": {"succeed": i == n - 1, "by": "human", "seen": {1, 2}},
            "grasp_penalty": np.float64(-0.02),
        }
        for i in range(n)
    ]


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Run the command in a folder; return its exit code, and what it says to whom."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["agentlace", "demos", "convert", *arguments])
        try:
            code = main()
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def save(value, name="a.pkl", protocol=4):
    with open(name, "wb") as file:
        pickle.dump(value, file, protocol)


def loaded(name="out.npz"):
    store = ReplayBuffer(100)
    load_demos(store, name)
    return store.sample(len(store), indx=np.arange(len(store)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_transitions_are_converted(convert, protocol):
    rows = transitions()
    save(rows, protocol=protocol)
    code, said, warned = convert("a.pkl", "out.npz")
    assert code == 0
    assert warned.startswith("warning: a pickle can run code") and warned.count("\n") == 1
    assert said.splitlines() == [
        "left out infos: no part of a transition",
        "3 transitions in out.npz",
        "  observations/state (1, 19) float32",
        "  observations/wrist (1, 128, 128, 3) uint8",
        "  actions (7,) float64",
        "  next_observations/state (1, 19) float32",
        "  next_observations/wrist (1, 128, 128, 3) uint8",
        "  rewards () float64",
        "  masks () float64",
        "  dones () bool",
        "  grasp_penalty () float64",
    ]
    batch = loaded()
    for i, row in enumerate(rows):
        for key in ("observations", "next_observations"):
            for name, value in row[key].items():
                assert np.array_equal(batch[key][name][i], value)
                assert batch[key][name].dtype == value.dtype
        assert np.array_equal(batch["actions"][i], row["actions"])
    assert batch["rewards"].tolist() == [0, 1, 2] and batch["masks"].tolist() == [1, 1, 0]
    assert batch["dones"].tolist() == [False, False, True]


def test_files_are_joined_in_their_order(convert):
    for name, values in {"a.pkl": (1, 2), "b.pkl": (3,)}.items():
        save([{"n": value} for value in values], name)
    assert convert("a.pkl", "b.pkl", "out.npz")[:2] == (
        0,
        "3 transitions in out.npz\n  n () int64\n",
    )
    assert loaded()["n"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_all_kinds(convert, protocol):
    straight = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    row = {
        "fortran": np.asfortranarray(straight),
        "transposed": straight.transpose(2, 0, 1),
        "part": straight[:, ::2],
        "big_endian": straight.astype(">i2"),
        "empty": np.zeros((0, 3)),
        "half": np.float16(0.5),
        "complex": 1j,
        "number": np.array(3),
    }
    save([row, row], protocol=protocol)
    assert convert("a.pkl", "out.npz")[0] == 0
    with np.load("out.npz") as file:
        assert set(file) == row.keys()
        for name, value in row.items():
            assert np.array_equal(file[name], [value, value])


@pytest.mark.parametrize("protocol", (2, 3))
def test_the_other_numpy_names_its_functions_otherwise(convert, protocol):
    written = pickle.dumps([{"a": np.arange(3), "b": np.float32(1)}], protocol)
    assert b"numpy._core" in written or b"numpy.core" in written
    mine, other = b"numpy._core", b"numpy.core"
    for name, data in {
        "1.pkl": written.replace(mine, other),
        "2.pkl": written.replace(mine, other).replace(other, mine),
    }.items():
        with open(name, "wb") as file:
            file.write(data)
    assert convert("1.pkl", "2.pkl", "out.npz")[0] == 0
    assert loaded()["a"].tolist() == [[0, 1, 2]] * 2


def test_what_is_no_number_in_each_transition_is_left_out(convert):
    rows = [
        {"n": 1, "text": "a", "list": [1], "o": {"x": 1.0, "when": np.datetime64(1, "s")}, 3: 1},
        {"n": 2, "text": np.str_("b"), "list": [1], "o": {"x": 2.0}, "some": 1, "a/b": 1},
    ]
    for row, size in zip(rows, (2, 3), strict=True):
        row |= {"shape": np.zeros(size), "large": 2**70, "../n": 1}
        row["ordered"] = collections.OrderedDict(y=np.ones(2), s=frozenset([1]))
    save(rows)
    code, said, _ = convert("a.pkl", "out.npz")
    assert code == 0
    never, once = (f"not an array or a number in {n} of 2 transitions" for n in (2, 1))
    assert set(said.splitlines()) == {
        *(f"left out {name}: {never}" for name in ("text", "list", "o/when", "large", "'../n'")),
        *(f"left out {name}: {never}" for name in ("'a/b'", "3", "ordered/s")),
        f"left out some: {once}",
        "left out shape: shapes differ, such as (2,) and (3,)",
        "2 transitions in out.npz",
        "  n () int64",
        "  o/x () float64",
        "  ordered/y (2,) float64",
    }
    assert loaded()["o"]["x"].tolist() == [1, 2]


def test_a_file_is_replaced_only_if_told_to(convert):
    save([{"n": 1}])
    assert convert("a.pkl", "out.npz")[0] == 0
    save([{"n": 2}])
    code, _, said = convert("a.pkl", "out.npz")
    assert code == 1 and "out.npz exists: pass --force" in said and loaded()["n"] == [1]
    assert convert("--force", "a.pkl", "out.npz")[0] == 0 and loaded()["n"] == [2]


def test_the_last_file_must_be_the_one_to_write(convert):
    save([{"n": 1}])
    save([{"n": 1}], "b.pkl")
    code, _, said = convert("a.pkl", "b.pkl")
    assert code == 1 and "must end in .npz" in said and sorted(os.listdir()) == ["a.pkl", "b.pkl"]


# -- what is refused -------------------------------------------------------------------------------


class Call:
    """Pickled as a call, which loading it would make."""

    def __init__(self, function, *args):
        self.called = function, args

    def __reduce__(self):
        return self.called


class Nested:
    class Inner:
        pass


def refused(convert, *names):
    """Return why the files are refused; nothing may have been written or executed."""
    before = sorted(os.listdir())
    code, said, error = convert(*(names or ["a.pkl"]), "out.npz")
    warning, *lines = error.splitlines()
    assert (code, said, len(lines)) == (1, "", 1)
    assert warning.startswith("warning") and lines[0].startswith("agentlace: ")
    assert sorted(os.listdir()) == before, "something was written"
    return lines[0]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "call, named",
    [
        (Call(os.system, "touch marker"), f"{os.system.__module__}.system"),
        (Call(eval, "open('marker', 'w')"), "eval"),
        (Call(exec, "open('marker', 'w')"), "exec"),
        (Call(getattr, 1, "save"), "getattr"),
        (Call(np.save, "marker", 1), "save"),
        (Call(open, "marker", "w"), "open"),
        (Call(bytearray, 2**50), "bytearray"),
        (fractions.Fraction(1), "fractions.Fraction"),
        (np.ma.masked_array([1]), "numpy.ma"),
        (collections.defaultdict(list), "collections.defaultdict"),
        (os.system, f"{os.system.__module__}.system"),
    ],
)
def test_what_a_pickle_may_not_name(convert, protocol, call, named):
    save([{"n": 1, "infos": {"call": call}}], protocol=protocol)
    said = refused(convert)
    assert "it names '" in said and named in said


def test_such_a_pickle_would_have_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(pickle.loads(pickle.dumps(Call(open, "marker", "w")))):
        assert os.path.exists("marker")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_array_of_objects(convert, protocol):
    objects = np.array([Call(os.system, "touch marker"), 1], object)
    save([{"n": 1, "infos": objects}], protocol=protocol)
    assert "dtype 'O8'" in refused(convert)
    save([{"n": np.zeros(1, [("x", "i4")])}], protocol=protocol)
    assert "dtype 'V4'" in refused(convert)


@pytest.mark.parametrize("protocol", (4, 5))
def test_a_name_with_dots_reaches_nothing(convert, protocol):
    save([Nested.Inner, {"n": 1}], protocol=protocol)
    assert "Nested.Inner" in refused(convert)
    # As Python would look up the attribute of a name that may be used.
    text = b"".join(b"\x8c" + bytes([len(s)]) + s for s in (b"numpy", b"ndarray.tofile"))
    write(b"\x80\x04" + text + b"\x93.")
    assert "'numpy.ndarray.tofile'" in refused(convert)


def write(data, name="a.pkl"):
    with open(name, "wb") as file:
        file.write(data)


NDARRAY, DTYPE = b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "0 bytes"),
        (b"no pickle", "not a whole pickle"),
        (b"\x89PNG\r\n\x1a\n", "not a whole pickle"),
        (b"\x80\x04].", "list of transitions"),
        (b"\x80\x04}.", "list of transitions"),
        (b"\x80\x04]K\x01a.", "list of transitions"),
        (b"\x80\x04]}a.", "nothing is left"),
        (b"Psomewhere\n.", "persistent id"),
        (b"\x80\x04Nq\x00Q.", "persistent id"),
        (b"\x80\x05\x97.", "not a whole pickle"),  # a buffer that is elsewhere
        (b"\x80\x02\x82\x01.", "not a whole pickle"),  # of copyreg's registry
        (b"(S'touch marker'\nios\nsystem\n.", "'os.system'"),
        (b"(cos\nsystem\nS'touch marker'\no.", "'os.system'"),
        (b"c\x1b[31m\nx\n.", r"'\x1b[31m.x'"),
        (NDARRAY + b"K\x01\x85R.", "calls numpy.ndarray"),
        (NDARRAY + b")\x81.", "must be a type"),
        (NDARRAY + b"}U\x01xK\x01sb.", "alters what it names"),
        (RECONSTRUCT + b"N}U\x08__name__K\x01s\x86b.", "alters what it names"),
        (RECONSTRUCT + RECONSTRUCT + b"K\x00\x85K\x00\x87R.", "class of its own"),
        (b"\x80\x02N" + b"r\xff\xff\xff\x7f.", "LONG_BINPUT"),
        (b"\x80\x04B\xff\xff\xff\xff.", "not a whole pickle"),
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0f.", "not a whole pickle"),
        (b"\x80\x05\x96" + b"\xff" * 5 + b"\0\0\0.", "not a whole pickle"),
        (b"c_codecs\nencode\nX\1\0\0\0aX\3\0\0\0zip\x86R.", "bytes in 'zip'"),
    ],
)
def test_files_that_are_something_else(convert, data, reason):
    write(data)
    assert reason in refused(convert)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_file_that_was_cut(convert, protocol):
    whole = pickle.dumps([{"n": np.arange(9)}], protocol)
    for length in range(1, len(whole)):
        write(whole[:length])
        with pytest.raises(ValueError, match="is not a whole pickle"):
            pickled.read_pickled(demos.Path("a.pkl"))
    assert "not a whole pickle" in refused(convert)


def test_a_second_file_that_is_refused(convert):
    save([{"n": 1}])
    save([Call(os.system, "touch marker")], "b.pkl")
    assert "b.pkl is refused" in refused(convert, "a.pkl", "b.pkl")


@pytest.mark.parametrize(
    "shape, reason",
    [
        ((2**40,), "declares 8,796,093,022,208 bytes of an array and has 8"),
        ((2**70, 2**70), "declares"),
        ((-1, -1), "does not come as bytes"),
        ((1,) * 100, "dimension"),
    ],
)
def test_arrays_are_as_large_as_their_bytes(convert, shape, reason):
    class Reconstruct(Call):
        def __reduce__(self):
            function, args, state = np.zeros(1).__reduce__()
            return function, args, (1, shape, *state[2:])

    save([{"n": Reconstruct(None)}])
    assert reason in refused(convert)


def test_bounds(convert, monkeypatch):
    rows = [{"n": np.zeros(100)}] * 10
    save(rows)
    monkeypatch.setattr(demos, "MAX_BYTES", 7999)
    assert "more than" in refused(convert)
    monkeypatch.setattr(demos, "MAX_BYTES", 8000)
    monkeypatch.setattr(demos, "MAX_LEAVES", 9)
    assert "convert fewer at once" in refused(convert)
    monkeypatch.setattr(pickled, "MAX_BYTES", 100)
    assert "bytes, not 1 to 100" in refused(convert)


def test_dicts_that_grow_without_end(convert):
    wide, inside = {"a": 1}, {}
    for _ in range(40):
        wide = {"a": wide, "b": wide}
    inside["inside"] = inside
    for row in (wide, inside):
        save([row])
        assert "more than 16 dicts deep" in refused(convert)


def test_no_file(convert):
    assert "No such file" in refused(convert)


def test_the_command_as_a_process(tmp_path):
    with io.BytesIO() as file:
        pickle.dump([{"n": Call(os.system, "touch marker")}], file)
        (tmp_path / "a.pkl").write_bytes(file.getvalue())
    program = [sys.executable, "-m", "agentlace", "demos", "convert", "a.pkl", "out.npz"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run(
        program, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 2)
    assert f"names '{os.system.__module__}.system'" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"]
