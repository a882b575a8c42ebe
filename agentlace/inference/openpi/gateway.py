"""From one openpi client's messages to calls of an interface, and back."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from agentlace.errors import AgentlaceError, UnknownRequest
from agentlace.inference.client import InferenceClient
from agentlace.inference.openpi import messages
from agentlace.inference.policy import policy_in


class Gateway:
    """Answers the messages of one connection, one after the other.

    Args:
        client: of the inference service; it stays the caller's.
        name: of the interface.
    """

    def __init__(self, client: InferenceClient, name: str) -> None:
        self._client = client
        self._line = client.line(apart=True)
        self._name = name
        self._timeout_s = client.timeout_ms / 1000
        self._last_s: float | None = None

    def answer(self, message: bytes) -> bytes | str:
        """Return what answers an observation: an action, or a text that says what failed.

        Blocks for about the client's ``timeout_ms`` at most. One thread at a time.
        """
        begin_s = time.monotonic()
        try:
            action = self._infer(messages.unpack(message), begin_s)
            answer = messages.pack(action)
        except AgentlaceError as error:
            error = self._client.explain(error)
            return f"{type(error).__name__}: {error}"
        self._last_s = time.monotonic() - begin_s
        return answer

    def _infer(self, observation: Any, begin_s: float) -> dict[str, Any]:
        called_s = time.monotonic()
        left_s = begin_s + self._timeout_s - called_s
        meta, answer = self._line.ask("call", self._name, observation, left_s)
        action, policy = _as_action(answer), policy_in(meta)
        timing = {"infer_ms": 1000 * (time.monotonic() - called_s)}
        if self._last_s is not None:
            timing["prev_total_ms"] = 1000 * self._last_s
        made_by = {} if policy is None else {"policy_version": str(policy)}
        return {**made_by, **action, "server_timing": timing}

    def close(self) -> None:
        """Close the line; a call that is waiting ends."""
        self._line.close()


def _as_action(answer: Any) -> dict[str, Any]:
    """Return an interface's answer as openpi's clients expect it: a dict, with ``actions``."""
    if isinstance(answer, dict):
        if answer.get("success") is False and "message" in answer:
            raise UnknownRequest(str(answer["message"]))
        return answer
    return {"actions": np.asarray(answer) if isinstance(answer, (list, tuple)) else answer}
