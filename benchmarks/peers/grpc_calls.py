"""Policy calls over gRPC with pickled messages, as robot stacks commonly write it. A baseline."""

import pickle
from concurrent import futures

import grpc

from benchmarks import payloads, worker

TIMEOUT_S = 60.0
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def server(port):
    reply = payloads.policy_reply()
    handler = grpc.unary_unary_rpc_method_handler(
        lambda request, context: request if "x" in request else reply,
        request_deserializer=pickle.loads,
        response_serializer=pickle.dumps,
    )
    rpc = grpc.server(futures.ThreadPoolExecutor(2), options=UNLIMITED)
    service = grpc.method_handlers_generic_handler("bench.Policy", {"Call": handler})
    rpc.add_generic_rpc_handlers((service,))
    rpc.add_insecure_port(f"127.0.0.1:{port}")
    rpc.start()
    worker.serve_beside(rpc.wait_for_termination)


def client(port):
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=UNLIMITED)
    remote = channel.unary_unary(
        "/bench.Policy/Call", request_serializer=pickle.dumps, response_deserializer=pickle.loads
    )

    def call(kind, size, n, name=None):
        payload = payloads.make(kind, size)
        return worker.sample_us(lambda: remote(payload, timeout=TIMEOUT_S), n)

    worker.serve(call=call)


if __name__ == "__main__":
    worker.main(server=server, client=client)
