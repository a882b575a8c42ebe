"""openpi's websocket protocol in front of an interface, so that openpi's clients can call it.

::

    messages.py    trees of values and arrays ⇄ openpi's msgpack
    gateway.py     from a message to a call of the interface, and back
    server.py      the websocket server

Needs the extra ``openpi``. Imported only by ``agentlace openpi``, or by a program that runs the
server itself.
"""
