"""The limits: a bare echo over lists of the broker, a Unix socket pair, and copying memory."""

import os
import socket

import hiredis
import numpy as np

from benchmarks import worker

READ_BYTES = 1 << 16


def _command(*arguments):
    parts = [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments]
    return b"*%d\r\n" % len(arguments) + b"".join(parts)


class _Lists:
    """A raw socket to the broker, as little code as it takes."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._reader = hiredis.Reader()

    def send(self, data):
        self._socket.sendall(data)

    def read(self):
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(READ_BYTES))
        return reply


ASK = b"ask "
"""Begins a request for so many bytes; any other is echoed."""


def list_server(path):
    def loop():
        lists, pop = _Lists(path), _command(b"BLPOP", b"requests", b"0")
        lists.send(pop)
        while True:
            reply = lists.read()
            if isinstance(reply, list):
                body = reply[1]
                if body.startswith(ASK):
                    body = bytes(int(body[len(ASK) :]))
                lists.send(_command(b"RPUSH", b"replies", body) + pop)

    worker.serve_beside(loop)


def list_client(path):
    lists = _Lists(path)

    def exchange(body, n):
        def call():
            lists.send(_command(b"RPUSH", b"requests", body) + _command(b"BLPOP", b"replies", b"0"))
            lists.read()
            lists.read()

        return worker.sample_us(call, n)

    def echo(size, n):
        return exchange(bytes(size), n)

    def ask(size, n):
        return exchange(b"%b%d" % (ASK, size), n)

    worker.serve(echo=echo, ask=ask)


def pair():
    """Echo between this process and a child of it, over a Unix socket pair."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    if not os.fork():
        ours.close()
        while data := theirs.recv(READ_BYTES):
            theirs.sendall(data)
        os._exit(0)
    theirs.close()

    def echo(size, n):
        body = bytes(size)

        def call():
            ours.sendall(body)
            left = size
            while left:
                left -= len(ours.recv(READ_BYTES))

        return worker.sample_us(call, n)

    worker.serve(echo=echo)


def memory():
    """Copy from one array to another."""

    def copy(size, n):
        source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
        return worker.sample_us(lambda: np.copyto(target, source), n)

    worker.serve(echo=copy)


if __name__ == "__main__":
    worker.main(list_server=list_server, list_client=list_client, pair=pair, memory=memory)
