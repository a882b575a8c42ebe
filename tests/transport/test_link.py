"""What a connection's socket is told to do."""

import socket
import threading

from agentlace.transport.link import Link
from agentlace.transport.resp import ReplyReader

LONG_S = 60.0


def test_over_tcp_the_rest_of_a_reply_wakes_its_reader():
    """A kernel that is to wait for more, and has handed out a part, may sleep through the rest."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        mine = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    with mine, theirs:
        link = Link(mine, ReplyReader(mine), None, mine.close)
        link.limit(LONG_S, len(b":1\r\n:0\r\n*-1\r\n"))
        theirs.sendall(b":1\r\n:0\r\n")
        replies, began = [], threading.Event()

        def read():
            began.set()
            replies.extend(link.reader.read() for _ in range(3))

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        began.wait(LONG_S)
        thread.join(0.2)  # it takes what there is
        theirs.sendall(b"*-1\r\n")
        thread.join(LONG_S / 3)
        assert replies == [1, 0, None]
