"""Certificates, good and bad, and a proxy that ends TLS in front of a broker without it."""

import contextlib
import select
import socket
import ssl
import threading

from agentlace.cli.certificates import issue_client, issue_server, make_authority


def write(directory, name, made):
    """Write a certificate and its key; return both paths."""
    paths = directory / f"{name}.crt", directory / f"{name}.key"
    for path, data in zip(paths, (made.certificate_pem, made.key_pem), strict=True):
        path.write_bytes(data)
    return paths


class Lab:
    """A CA with certificates for a server and a client, good ones and bad ones."""

    def __init__(self, directory):
        ca, other = make_authority("lab"), make_authority("lab")
        hosts = ["localhost", "127.0.0.1"]
        self.ca, self.ca_key = write(directory, "ca", ca)
        self.other_ca, _ = write(directory, "other-ca", other)
        self.server = write(directory, "server", issue_server(ca, hosts, 1))
        self.expired = write(directory, "expired", issue_server(ca, hosts, 0))
        self.elsewhere = write(directory, "elsewhere", issue_server(ca, ["robot.lab"], 1))
        self.client = write(directory, "client", issue_client(ca, "actor", 1))
        self.stranger = write(directory, "stranger", issue_client(other, "actor", 1))
        self.expired_client = write(directory, "expired-client", issue_client(ca, "actor", 0))


class TlsProxy:
    """Ends TLS and forwards to a port of this machine. A context manager.

    Args:
        target: the port.
        certificate: paths of the server's certificate and key.
        clients: the CA that clients must have a certificate of, None for all clients.
        newest: the highest version of TLS that it speaks.
    """

    def __init__(self, target, certificate, clients=None, newest=ssl.TLSVersion.TLSv1_3):
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*certificate)
        self._context.maximum_version = newest
        if clients is not None:
            self._context.load_verify_locations(clients)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.port = self._listener.getsockname()[1]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._sockets = set()

    def _accept(self):
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                raw, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(raw,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, raw):
        raw.settimeout(5)
        try:
            client = self._context.wrap_socket(raw, server_side=True)
        except (OSError, ValueError):
            raw.close()
            return
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            self._sockets |= {client, server}
            with contextlib.suppress(OSError, ValueError):
                self._forward(client, server)
            for sock in (client, server):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _forward(self, client, server):
        """Forward both ways in one thread: two may not use one end of TLS at the same time."""
        while not self._stop.is_set():
            ready = (
                [client] if client.pending() else select.select([client, server], [], [], 0.02)[0]
            )
            for source, target in ((client, server), (server, client)):
                if source in ready:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    target.sendall(data)

    def cut(self):
        """Cut all connections."""
        for sock in list(self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._sockets.clear()

    def __enter__(self):
        self._threads[0].start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self.cut()
        for thread in list(self._threads):
            thread.join()
        self._listener.close()
