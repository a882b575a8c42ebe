"""The calling end: a thin device asks a policy that runs elsewhere."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Any

from agentlace.codec import Signature
from agentlace.config import BrokerURL, InferenceConfig
from agentlace.errors import AgentlaceError, BrokerUnreachable, SchemaMismatch
from agentlace.inference import specs
from agentlace.inference.policy import PolicyAnswer, PolicyVersion, policy_in
from agentlace.inference.specs import SEPARATOR, InterfaceSpec
from agentlace.service import SOFT_ERRORS, Client
from agentlace.transport.requests import RequestClient

log = logging.getLogger(__name__)


class InferenceClient(Client):
    """Calls interfaces of an inference server, which need not be there yet.

    Args:
        server_ip: the broker's host, unless ``broker`` or AGENTLACE_BROKER says otherwise.
        port_num: number of the service.
        timeout_ms: deadline of one call.
        strict: raise errors that otherwise give None; default AGENTLACE_STRICT.
        broker: address; else AGENTLACE_BROKER, else ``server_ip``'s.

    Attributes:
        last_policy_version: which policy made the last answer; None before the first, and if the
            server does not say so.

    Raises:
        BrokerAuthFailed: the broker refuses the user or password.
    """

    def __init__(
        self,
        server_ip: str,
        port_num: int,
        timeout_ms: float = 800,
        strict: bool | None = None,
        broker: str | BrokerURL | None = None,
    ) -> None:
        config = InferenceConfig(port_num)
        super().__init__("inference", server_ip, config, broker, timeout_ms, strict)
        self.last_policy_version: PolicyVersion | None = None
        self._checks: dict[str, Signature] = {}
        self._checks_of: str | None = None
        try:
            self._presence.acquire(exclusive=False)
        except BrokerUnreachable as error:
            log.warning("%s", error, extra=self._about(error))
        self._presence.start()

    def interfaces(self) -> set[str]:
        """Return the names of the server's interfaces; empty if there is no server."""
        try:
            return set(self._call("interfaces", "", None) or ())
        except SOFT_ERRORS:  # strict or not: without a server there are none
            return set()

    def describe(self) -> list[InterfaceSpec]:
        """Return what each version of each interface takes and gives; empty without a server.

        Printing one shows it. A server of an earlier version lists none.

        Raises:
            DecodeError: what the server tells is damaged.
        """
        try:
            return self._read_specs()
        except SOFT_ERRORS:
            return []

    def call(self, name: str, payload: Any, version: str | None = None, full: bool = False) -> Any:
        """Call an interface and return its reply; None on a timeout (see ``last_error``).

        An unknown interface answers ``{"success": False, "message": …}``. A call must have no
        side effects: it may be executed more than once if the connection is lost.

        Args:
            name: of the interface; ``"policy@2"`` is its version 2.
            payload: any tree that the codec takes. It is checked before it is sent, if the
                server declares what the interface takes and this client has heard of it.
            version: of the interface; by default the one that the server has made its default.
            full: whether to return a PolicyAnswer: the reply, and which policy made it.

        Raises:
            EncodeError: a value in the payload may not travel.
            SchemaMismatch: the payload is not what the interface takes; nothing was sent.
        """
        asked = name if version is None else f"{name}{SEPARATOR}{version}"
        self.check(asked, payload)
        answer = self._ask("call", asked, payload)
        if answer is None:
            return None
        meta, tree = answer
        self.last_policy_version = policy = policy_in(meta)
        return PolicyAnswer(tree, policy) if full else tree

    def check(self, name: str, payload: Any) -> None:
        """Compare a payload with what the server declares that an interface takes.

        Free as long as the server declares nothing. Asks the server when it declares something
        new, and before anything is refused, which takes up to ``timeout_ms``.

        Raises:
            SchemaMismatch: it differs; names the first place that does, what was found and what
                was expected.
        """
        server = self._server
        if server is not None and server.get("specs") != self._checks_of:
            self._learn_checks(server.get("specs"))
        try:
            self._check(name, payload)
        except SchemaMismatch:
            with contextlib.suppress(*SOFT_ERRORS):  # it may have been restarted just now
                self._read_specs()
            self._check(name, payload)

    def _check(self, name: str, payload: Any) -> None:
        signature = self._checks.get(name)
        if signature is not None:
            signature.check(payload)

    def _learn_checks(self, digest: Any) -> None:
        """Read the specs of a server that declares other ones than those that are known."""
        self._checks_of, self._checks = digest, {}
        if digest is not None:
            try:
                self._read_specs()
            except AgentlaceError as error:  # the server checks too
                text = "payloads are not checked here: %s"
                log.warning(text, error, extra=self._about(error))

    def _read_specs(self) -> list[InterfaceSpec]:
        """Ask the server for its specs, and check payloads by them from now on."""
        told = self._requests.call("describe", "", None, self.timeout_ms / 1000)
        if isinstance(told, dict):  # a server that knows no such request
            return []
        listed, self._checks = specs.read(told)
        return listed

    def line(self, apart: bool = False) -> RequestClient:
        """Return a further connection, for calls while one of this client is under way.

        It raises what would give None here. Close it before this client is stopped.

        Args:
            apart: whether it counts as a client of its own, where clients take turns and where a
                newer call takes the place of an older one.
        """
        family = b"" if apart else self._requests.family
        return RequestClient(self._broker, self._keys, self._server_token, family)

    def explain(self, error: AgentlaceError) -> AgentlaceError:
        """Return why a call on a :meth:`line` failed: no server, where it only timed out."""
        return self._explained(error)

    def _call(self, what: str, name: str, payload: Any) -> Any:
        answer = self._ask(what, name, payload)
        return None if answer is None else answer[1]

    def _ask(self, what: str, name: str, payload: Any) -> tuple[Mapping[str, Any], Any] | None:
        timeout_s = self.timeout_ms / 1000
        return self._softly(self._requests.ask, what, name, payload, timeout_s)
