"""Policy calls as openpi makes them: msgpack over a websocket, with its own client."""

import asyncio

import websockets.asyncio.server
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from benchmarks import payloads, worker


def server(port):
    packer, reply = msgpack_numpy.Packer(), payloads.policy_reply()

    async def handle(connection):
        await connection.send(packer.pack({}))  # its client expects metadata first
        async for message in connection:
            msgpack_numpy.unpackb(message)
            await connection.send(packer.pack(reply))

    async def listen():
        options = {"compression": None, "max_size": None}
        async with websockets.asyncio.server.serve(handle, "127.0.0.1", port, **options):
            worker.announce()
            await asyncio.Future()

    asyncio.run(listen())


def client(port):
    policy = WebsocketClientPolicy(host="127.0.0.1", port=port)

    def call(kind, size, n, name=None):
        payload = payloads.make(kind, size)
        return worker.sample_us(lambda: policy.infer(payload), n)

    worker.serve(call=call)


if __name__ == "__main__":
    worker.main(server=server, client=client)
