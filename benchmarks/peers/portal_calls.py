"""Calls with portal."""

import portal

from benchmarks import payloads, worker

TIMEOUT_S = 60.0


def server(port):
    reply = payloads.policy_reply()
    rpc = portal.Server(port)
    rpc.bind("echo", lambda payload: payload)
    rpc.bind("policy", lambda payload: reply)
    worker.serve_beside(rpc.start)


def client(port):
    rpc = portal.Client(f"127.0.0.1:{port}")

    def call(kind, size, n, name="echo"):
        payload, method = payloads.make(kind, size), getattr(rpc, name)
        return worker.sample_us(lambda: method(payload).result(timeout=TIMEOUT_S), n)

    worker.serve(call=call)


if __name__ == "__main__":
    worker.main(server=server, client=client)
