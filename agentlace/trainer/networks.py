"""An actor's networks: received, checked, and which of them it acts with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from agentlace.codec import Signature
from agentlace.errors import AgentlaceError, SchemaMismatch
from agentlace.telemetry import Sample
from agentlace.trainer.pausable_client import PausableClient
from agentlace.transport.weights import Version
from agentlace.transport.weights_receiver import WeightsReceiver
from agentlace.waits import Wait


class NetworkClient(PausableClient):
    """The part of an actor's connection that receives networks."""

    _receivers: list[WeightsReceiver]

    def _role(self, kind: str) -> str:
        return "actor"

    def _measure(self) -> Iterator[Sample]:
        yield from super()._measure()
        version, age_s = self.policy_version, self.policy_age_s
        if version is not None:
            yield Sample("network_version", version)
        if age_s is not None:
            yield Sample("network_age_seconds", age_s)

    def _waits(self) -> Iterator[Wait]:
        yield from super()._waits()
        if self.refused_network is not None:
            yield Wait(f"a network that fits: {self.refused_network}")

    def recv_network_callback(self, callback: Callable[[Any], object], expect: Any = None) -> None:
        """Call back with each newest network, the present one at once.

        Each version comes at most once and never after a newer one; versions may be skipped.
        What a trainer before the present one has left at the broker does not come: it may be
        of another run and not fit this one's agent. The callback runs in a thread of its own
        and gets a tree of its own.

        Args:
            callback: called with the tree.
            expect: a tree like the networks that are expected, such as the agent's own
                parameters or their ``jax.ShapeDtypeStruct``. A network that differs in structure,
                shape or dtype is refused before the callback: this client goes on with the one
                before, and :attr:`refused_network` names the first difference. Without it every
                network comes.

        Raises:
            Closed: after :meth:`stop`.
            SchemaMismatch: what is expected is no tree.
        """
        check = None if expect is None else Signature(expect).check
        self._check_usable()
        receiver = WeightsReceiver(self._broker, self._keys, callback, check, self._note_refused)
        began_ms = (self._server or {}).get("began_ms", 0)
        receiver.version = Version(began_ms, 0)
        self._receivers.append(receiver)
        receiver.start()

    def _note_refused(self, error: AgentlaceError) -> None:
        self.last_error = error

    @property
    def refused_network(self) -> SchemaMismatch | None:
        """Why the newest network was refused; None if it was not, or a later one fits."""
        return next((r.refusal for r in self._receivers if r.refusal is not None), None)

    @property
    def _policy(self) -> Version | None:
        """Version of the newest network received."""
        versions = [r.version for r in self._receivers if r.version and r.version.number]
        return max(versions, default=None)

    @property
    def policy_version(self) -> int | None:
        """Number of the newest network received, None before the first."""
        return None if self._policy is None else self._policy.number

    @property
    def policy_age_s(self) -> float | None:
        """Seconds since the trainer published the newest network received."""
        ages = [receiver.age_s for receiver in self._receivers]
        return min((age for age in ages if age is not None), default=None)
