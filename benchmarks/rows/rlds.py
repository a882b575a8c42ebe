"""Episodes written to a dataset."""

from benchmarks.model import US, Case, Contestant, Goal, Metric, Row

RATE = Metric("rate", "steps/s", lower_is_better=False)
COMMIT = Metric("commit_ms", "ms")
THEIRS, THEIRS_FED = "SequentialWriter", "SequentialWriter, images encoded by OpenCV"
STEPS = 50
GROWN = (100, 1_000, 10_000, 100_000)
QUICK_SHARE = 0.01
SHARD_NBYTES = 1 << 20
GROW_TIMEOUT_S = 500.0


def _open(role, **args):
    def open_(stage):
        programs = {}

        def measure(image_format, n):
            if image_format not in programs:
                programs[image_format] = stage.program(
                    "rlds_writers",
                    role,
                    folder=stage.folder(),
                    steps=STEPS,
                    image_format=image_format,
                    **args,
                )
            return {"rate": programs[image_format].ask("write", n=n)}

        return measure

    return open_


def _case(name, image_format, n, goals=()):
    return Case(name, {"image_format": image_format, "n": n}, goals, rounds=5, warmup={"n": 4})


WRITE = Row(
    name="rlds_write",
    title="episodes of 50 steps with two 128x128x3 cameras written as RLDS",
    metrics=(RATE,),
    contestants=(
        Contestant(US, _open("ours")),
        Contestant(THEIRS, _open("sequential", opencv=False)),
        Contestant(THEIRS_FED, _open("sequential", opencv=True)),
    ),
    cases=(
        _case(
            "PNG",
            "png",
            8,
            (Goal("rate against SequentialWriter", "rate", (US,), (THEIRS,), least=4.0),),
        ),
        _case("JPEG", "jpeg", 12),
    ),
    bound_s=400.0,
    notes=(
        "Ours commits each episode: it is on the disk, synced, before the next begins. "
        "SequentialWriter has it in an open file, and loses it when it is killed.",
        "Frames are a scene with sensor noise (PNG makes them half as large).",
    ),
)


def _open_many(stage):
    program = stage.program(
        "rlds_writers", "many", folder=stage.folder(), shard_nbytes=SHARD_NBYTES
    )

    def measure(episodes, n):
        total = int(episodes * QUICK_SHARE) if stage.quick else episodes
        program.ask("grow", GROW_TIMEOUT_S, total=total)
        return {"commit_ms": program.ask("commits", n=n)}

    return measure


MANY = Row(
    name="rlds_commit",
    title="commit of one episode as a dataset grows",
    metrics=(COMMIT,),
    contestants=(Contestant(US, _open_many),),
    cases=tuple(
        Case(f"{n:,} episodes", {"episodes": n, "n": 100}, rounds=3, warmup={"n": 5}, x=n)
        for n in GROWN
    ),
    bound_s=600.0,
    x_name="episodes",
    notes=(
        "Files are joined up to 1 MiB instead of 128, so that there are as many of them as with "
        "episodes a hundred times as large.",
        "--quick has a hundredth of the episodes.",
    ),
)

ROWS = (WRITE, MANY)
