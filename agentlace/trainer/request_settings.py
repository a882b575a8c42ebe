"""What existing programs set on ``client.req_rep_client``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentlace.trainer.client import TrainerClient


class RequestSettings:
    """What existing programs set on ``client.req_rep_client``."""

    def __init__(self, client: TrainerClient) -> None:
        self._client = client

    @property
    def timeout_ms(self) -> float:
        """Deadline of one request or update, in milliseconds."""
        return self._client.timeout_ms

    @timeout_ms.setter
    def timeout_ms(self, value: float) -> None:
        self._client.timeout_ms = value

    def reset_socket(self) -> None:
        """Connect anew with the next request."""
        self._client._requests.reset()
