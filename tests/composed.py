"""docker-compose.yml by hand: what Compose makes of the files, and its services as processes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
BASE, SECURED = "docker-compose.yml", "docker-compose.secured.yml"
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+):-([^}]*)\}")
DEADLINE_S = 90.0


def filled(text, **variables):
    """Return a text with its variables as Compose fills them in."""
    return VARIABLE.sub(lambda match: variables.get(match[1]) or match[2], text)


def merged(below, above):
    """Return two files' trees as Compose joins them: maps by key, lists of one kind appended."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {
            key: merged(below[key], value) if key in below else value
            for key, value in above.items()
        }
    is_more = isinstance(below, list) and isinstance(above, list)
    return above if not is_more or above[:1] in (["sh"], ["CMD-SHELL"]) else below + above


def composed(*names, **variables):
    """Return what Compose makes of these files."""
    tree = {}
    for name in names:
        tree = merged(tree, yaml.safe_load(filled((ROOT / name).read_text(), **variables)))
    return tree


def in_order(services, wanted):
    """Return the wanted services and what they depend on, the first to be started first."""
    order = []

    def visit(name):
        for other in services[name].get("depends_on", ()):
            visit(other)
        if name not in order:
            order.append(name)

    for name in wanted:
        visit(name)
    return order


class Stage:
    """One stage of the Dockerfile."""

    def __init__(self, name, base):
        self.name = name
        self.base = base
        self.instructions = []

    def last(self, word):
        """Return the rest of the last instruction of this kind; None if there is none."""
        return next((rest for kind, rest in reversed(self.instructions) if kind == word), None)


def dockerfile(arguments=None):
    """Return the stages of the Dockerfile by name, with arguments filled in."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    text = text.replace("\\\n", " ")
    known = dict(re.findall(r'^ARG (\w+)="?([^"\n]*)"?$', text, re.MULTILINE)) | (arguments or {})
    stages = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        for name, value in known.items():
            rest = rest.replace(f"${{{name}}}", value)
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = stages[name] = Stage(name, base)
        elif stages:
            stage.instructions.append((word, rest))
    return stages


def inherited(stages, name, word):
    """Return the last instruction of a kind of a stage, or of those below it."""
    stage = stages[name]
    found = stage.last(word)
    if found is None and stage.base in stages:
        return inherited(stages, stage.base, word)
    return found


class Machine:
    """Runs services as processes, in places of this machine's. A context manager.

    Args:
        folder: of everything that the services write.
        services: as Compose has them.
        places: texts of commands and environments, and what stands for them here.
    """

    def __init__(self, folder, services, places):
        self._folder = folder
        self._services = services
        self._places = places
        self._programs = folder / "bin"
        self._programs.mkdir()
        self.running = {}
        self.output = {}

    def program(self, name, *command):
        """Have a program of this name on the services' PATH."""
        path = self._programs / name
        path.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, command))} "$@"\n')
        path.chmod(0o755)

    def here(self, text):
        """Return a text with the places of this machine."""
        for there, here in self._places.items():
            text = text.replace(there, str(here))
        return text.replace("$$", "$")

    def environment(self, name):
        told = self._services[name].get("environment", {})
        path = f"{self._programs}:{os.environ['PATH']}"
        env = {"PATH": path, "HOME": str(self._folder), "PYTHONPATH": str(ROOT)}
        env |= {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
        return env | {key: self.here(str(value or "")) for key, value in told.items()}

    def command(self, name):
        """Return the command that a container would run, after the image's entry point."""
        told = [self.here(str(part)) for part in self._services[name]["command"]]
        build = self._services[name].get("build")
        if build is None:
            return told
        entry = json.loads(inherited(dockerfile(), build["target"], "ENTRYPOINT"))
        programs = {"agentlace": [sys.executable, "-m", "agentlace"], "python": [sys.executable]}
        return [*programs[entry[0]], *told]

    def start(self, name):
        process = self.running[name] = subprocess.Popen(
            self.command(name),
            cwd=self._folder,
            env=self.environment(name),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines = self.output[name] = []
        threading.Thread(target=lines.extend, args=(process.stdout,), daemon=True).start()

    def check_health(self, name):
        """Return whether a service is healthy, as its own check tells."""
        kind, *check = self._services[name]["healthcheck"]["test"]
        command = ["sh", "-c", *check] if kind == "CMD-SHELL" else check
        done = subprocess.run(
            [self.here(part) for part in command], env=self.environment(name), capture_output=True
        )
        return done.returncode == 0

    def until(self, condition, what):
        """Wait for a condition; fail, with all that was said, if it does not come."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come:\n{self.said()}")
            time.sleep(0.02)

    def said(self):
        return "\n".join(
            f"{name}: {line.rstrip()}" for name in self.output for line in self.output[name]
        )

    def wait(self, name):
        """Return a service's exit status."""
        return self.running[name].wait(DEADLINE_S)

    def stop(self, name):
        """Stop a service as Compose does, and return its exit status."""
        self.running[name].send_signal(signal.SIGTERM)
        return self.wait(name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.running.values()):
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdout.close()
