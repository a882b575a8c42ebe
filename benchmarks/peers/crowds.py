"""Many callers at once: threads of a few processes, each calling in a loop."""

import threading
import time

from benchmarks import payloads, worker

TIMEOUT_S = 30.0


def crowd(make_call, threads):
    """Serve a command that has ``threads`` callers call for a while; returns all durations."""
    calls = [make_call() for _ in range(threads)]

    def round_(size, seconds):
        durations, end = [], time.monotonic() + seconds
        payload = payloads.make("blob", size)

        def loop(call):
            own = []
            while time.monotonic() < end:
                own += worker.sample_us(lambda: call(payload), 1)
            durations.extend(own)

        callers = [threading.Thread(target=loop, args=(call,)) for call in calls]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(seconds + TIMEOUT_S)
        return durations

    worker.serve(round=round_)


def ours(threads, number=2):
    from agentlace import InferenceClient

    def make_call():
        client = InferenceClient("localhost", number, timeout_ms=1000 * TIMEOUT_S, strict=True)
        return lambda payload: client.call("echo", payload)

    crowd(make_call, threads)


def wire(port, threads):
    from benchmarks.peers.zmq_wire import Caller

    def make_call():
        caller = Caller(port)
        return lambda payload: caller.call({"type": "act", "key": "echo", "payload": payload})

    crowd(make_call, threads)


if __name__ == "__main__":
    worker.main(ours=ours, wire=wire)
