"""What servers, clients and recorders have in common: their numbers can be read over HTTP."""

from __future__ import annotations

from agentlace.metrics.endpoint import LOOPBACK, PORT, serve
from agentlace.telemetry import Telemetry


class Measured:
    """A node whose numbers can be read.

    Attributes:
        telemetry: what this node says of itself, beside who it is.
    """

    telemetry: Telemetry

    def serve_metrics(self, port: int = PORT, host: str = LOOPBACK) -> int:
        """Serve this node's numbers to Prometheus at ``/metrics``, until it is stopped.

        Reading them costs the node what a heartbeat does. There is no password: on another host
        than loopback, whoever reaches the port reads the numbers and the node's name.

        Args:
            port: 0 for any free one.
            host: address to listen on.

        Returns:
            The port.

        Raises:
            AgentlaceError: the port is taken, or the address is none of this machine's.
            MissingExtra: prometheus_client is not installed.
        """
        endpoint = serve(port, host, [self.telemetry])
        self.telemetry.at_end(endpoint.close)
        return endpoint.port
