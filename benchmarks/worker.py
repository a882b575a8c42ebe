"""The inside of a measured process: commands come as lines of JSON, answers go back likewise.

Standard library only, since it also runs in the peers' own environments. A worker ends by
itself when its standard input closes, so that nothing outlives a harness that was killed.
"""

import json
import os
import queue
import sys
import threading
import time
import traceback

GRACE_S = 5.0
"""A worker that is still busy so long after its harness has gone is ended the hard way."""

_answers = None


def main(**roles):
    """Run the role that the command line names: ``ROLE JSON-ARGUMENTS``."""
    global _answers
    _answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    roles[sys.argv[1]](**json.loads(sys.argv[2]))


def _say(answer):
    _answers.write(json.dumps(answer) + "\n")


def _read_input(inbox):
    for line in sys.stdin:
        inbox.put(json.loads(line))
    inbox.put(None)
    time.sleep(GRACE_S)
    os._exit(1)


def _commands():
    """Yield what the harness asks for, until it has gone."""
    inbox = queue.SimpleQueue()
    threading.Thread(target=_read_input, args=(inbox,), daemon=True).start()
    _say({"value": "ready"})
    while (request := inbox.get()) is not None:
        yield request


def serve(**commands):
    """Announce this worker and execute one command after the other."""
    for request in _commands():
        try:
            answer = {"value": commands[request.pop("do")](**request)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        _say(answer)


def announce():
    """Tell the harness that this worker's server is ready, and end when the harness has gone."""

    def wait():
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
    _say({"value": "ready"})


def serve_beside(loop):
    """Announce this worker and run a server's endless loop, in the main thread."""
    announce()
    loop()


def sample_us(call, n):
    """Return the durations of n calls, in microseconds."""
    clock, durations = time.perf_counter_ns, []
    for _ in range(n):
        start = clock()
        call()
        durations.append((clock() - start) / 1000)
    return durations
