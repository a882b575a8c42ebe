"""Actions, observations and inference calls over the earlier wire."""

from benchmarks import payloads, worker
from benchmarks.peers.zmq_wire import Caller, answer


def server(port):
    reply = payloads.policy_reply()

    def handle(request):
        if request["type"] == "obs":
            return payloads.observation(int(next(iter(request["keys"]))))
        return reply if request["key"] == "policy" else request["payload"]

    worker.serve_beside(lambda: answer(port, handle))


def client(port):
    caller = Caller(port)

    def call(kind, size, n, name="echo"):
        payload = payloads.make(kind, size)
        return worker.sample_us(
            lambda: caller.call({"type": "act", "key": name, "payload": payload}), n
        )

    def obs(size, n):
        return worker.sample_us(lambda: caller.call({"type": "obs", "keys": {str(size)}}), n)

    worker.serve(call=call, obs=obs)


if __name__ == "__main__":
    worker.main(server=server, client=client)
