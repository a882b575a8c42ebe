"""Forks processes that write a dataset and kill themselves at a given step.

Reads jobs from stdin, one JSON a line, and answers each with the exit status of its process.
What is imported once is there for all.
"""

import json
import os
import shutil
import signal
import stat
import sys
import tempfile

from agentlace.rlds.writer import DatasetWriter
from tests.rlds.support import episode

STEPS = ("replace", "fsync", "link", "unlink", "mkdir", "utime")
"""Functions of ``os`` that change the disk, or what of it survives a power cut."""


class Killer:
    """Counts calls of these functions, and kills this process at one of them.

    Args:
        at: number of the call, from 1; 0 for none.
        how: "before" or "after" it, or "torn": of the file to be synced only half is there.
    """

    def __init__(self, at, how):
        self.at, self.how, self.calls = at, how, []
        for name in STEPS:
            setattr(os, name, self._counted(getattr(os, name)))
        shutil.rmtree = self._counted(shutil.rmtree)

    def _counted(self, function):
        def call(*args, **kwargs):
            of_file = function.__name__ == "fsync" and _is_file(args[0])
            self.calls.append("fsync of a file" if of_file else function.__name__)
            if len(self.calls) == self.at:
                self._last_step(function, args, kwargs)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    def _last_step(self, function, args, kwargs):
        if self.how == "after":
            function(*args, **kwargs)
        elif self.how == "torn":
            os.truncate(f"/proc/self/fd/{args[0]}", os.fstat(args[0]).st_size // 2)


def _is_file(descriptor):
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def write(job):
    """Go on where the cursor says; each commit is noted in a file once it has returned."""
    killer = Killer(job["kill_at"], job["how"])
    # Nobody handles it, so that it ends the process at whatever it is doing.
    signal.setitimer(signal.ITIMER_REAL, job["kill_after_s"])
    options = {"join_after": 3, "shard_nbytes": job["shard_nbytes"], "threads": 1}
    notes = os.open(job["notes"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with DatasetWriter(job["data_dir"], "killed", **options) as writer:
        begin = (writer.cursor or {"next": 0})["next"]
        for number in range(begin, job["episodes"], job["per_commit"]):
            numbers = range(number, min(number + job["per_commit"], job["episodes"]))
            for one in numbers:
                writer.append(episode(one))
            writer.commit({"next": numbers.stop})
            os.write(notes, f"{numbers.stop}\n".encode())
            if job["waits"]:
                writer._joiner.wait()
    return killer.calls


def warm_up():
    """Import whatever is imported at first use."""
    with tempfile.TemporaryDirectory() as data_dir, DatasetWriter(data_dir, "warm") as writer:
        writer.append(episode(0))
        writer.commit()


def main():
    warm_up()
    for line in sys.stdin:
        job = json.loads(line)
        read, done = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(done, json.dumps(write(job)).encode())
                os._exit(0)
            except BaseException as error:
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
                os._exit(1)
        os.close(done)
        _, status = os.waitpid(child, 0)
        with open(read) as pipe:
            calls = json.loads(pipe.read() or "[]")
        print(json.dumps({"status": status, "calls": calls}), flush=True)


if __name__ == "__main__":
    main()
