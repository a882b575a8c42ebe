"""The action service's calling end."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from agentlace.action.claim import FORGOTTEN_S
from agentlace.action.driving import DrivingClient
from agentlace.action.images import ImageTimes, ObservationImages, Sizes
from agentlace.action.known import check_known
from agentlace.action.latest import Latest
from agentlace.config import ActionConfig, BrokerURL
from agentlace.errors import AgentlaceError
from agentlace.telemetry import Sample
from agentlace.transport.broadcast import BroadcastWatcher, NewestWatcher, read_newest
from agentlace.transport.keys import NEWEST_MS
from agentlace.transport.requests import Ticket


class ActionClient(DrivingClient):
    """Requests observations and sends actions.

    Args:
        server_ip: the broker's host, unless ``broker`` or AGENTLACE_BROKER says otherwise.
        port: the config itself; or its ``port_number``, and ``config`` beside it.
        wait_for_server: wait without end for broker and server, logging what for.
        timeout_ms: deadline of one request.
        task_id: a label, without effect.
        config: the service; it is copied. Must equal the server's.
        strict: raise errors that otherwise give None; default AGENTLACE_STRICT.
        broker: address; else AGENTLACE_BROKER, else ``server_ip``'s.
        exclusive: take control before the constructor returns, and keep it until ``stop``: no
            other client can act meanwhile. If another one has it, it is waited for: without end
            if ``wait_for_server``, else for as long as it takes until a killed one is forgotten.
        resize: sizes of the images in all observations, by their place (``camera``, or
            ``cameras/wrist`` in nested dicts): ``(height, width)`` in pixels, or a
            :class:`Resize`, which can keep the aspect. Done here, when an image is looked at.

    Raises:
        BrokerUnreachable, PeerAbsent: not there within five seconds.
        BrokerAuthFailed: the broker refuses the user or password.
        ConfigMismatch: the server was built with another config.
        ControlHeld: ``exclusive``, and another client has control.
        BadSetting: the config names an image codec that there is not.
        MissingExtra: there are images to decode or resize, and OpenCV is not installed.
    """

    def __init__(
        self,
        server_ip: str,
        port: int | ActionConfig | None = None,
        wait_for_server: bool = False,
        timeout_ms: float = 800,
        task_id: str | None = None,
        config: ActionConfig | None = None,
        strict: bool | None = None,
        broker: str | BrokerURL | None = None,
        exclusive: bool = False,
        resize: Sizes | None = None,
    ) -> None:
        config = _checked_config(port, config)
        super().__init__(server_ip, config, broker, timeout_ms, strict)
        self.task_id = task_id
        self._images = ObservationImages(self.config.image_codecs, resize)
        self._watchers: list[BroadcastWatcher] = []
        self._newest: NewestWatcher | None = None
        self._watch_lock = threading.Lock()
        try:
            self._connect(wait_for_server)
            if exclusive:
                self.take_control(math.inf if wait_for_server else FORGOTTEN_S)
        except BaseException:
            self.stop()
            raise

    def obs(self, keys: Iterable[str] | None = None, *, resize: Sizes | None = None) -> Any:
        """Return the server's observation; None on a timeout (see ``last_error``).

        Images that travelled encoded are decoded when they are first looked at.

        Args:
            keys: observation keys to ask for, all if None.
            resize: sizes of images, beside and before those of the constructor.

        Raises:
            UnknownRequest: a key is not in the config's ``observation_keys``; or the observation
                has nothing at a place to resize.
        """
        known = self.config.observation_keys
        wanted = set(known) if keys is None else set(keys)
        check_known(wanted, known, "observation")
        observation = self._call("obs", "", wanted)
        return None if observation is None else self._images.opened(observation, resize)

    def act(self, key: str, payload: Any = None, *, ticket: Ticket | None = None) -> Any:
        """Execute an action and return the server's reply; None on a timeout.

        The action is executed at most once, and never after its deadline has passed; if it gave
        None, ``last_error.started`` tells whether the server had taken it.

        Args:
            key: one of the config's ``action_keys``.
            payload: any tree; {} if None.
            ticket: of an earlier call that this one repeats: if the server has executed it, its
                reply is returned.

        If another client has control it is not executed: None, and ``last_error`` is a
        ControlHeld that says who has it.

        Raises:
            UnknownRequest: the key is not in the config's ``action_keys``.
            EncodeError: a value in the payload may not travel.
        """
        if key not in self.config.action_keys:
            check_known([key], self.config.action_keys, "action")
        if self._claim.is_lost:
            self._softly(self._claim.retake, self.timeout_ms / 1000)
            if self._claim.is_lost:
                return None
        return self._call("act", key, {} if payload is None else payload, ticket)

    def _call(self, what: str, name: str, payload: Any, ticket: Ticket | None = None) -> Any:
        timeout_s = self.timeout_ms / 1000
        return self._softly(self._requests.call, what, name, payload, timeout_s, ticket)

    def new_ticket(self) -> Ticket:
        """Return the identity of an action that may have to be repeated."""
        return self._requests.ticket()

    def register_obs_callback(self, callback: Callable[[Any], object]) -> None:
        """Call back with every observation that the server publishes from now on.

        If this client is slower than the server it gets the newest only; ``missed_obs`` counts
        the others. The callback runs in a thread of its own.

        Raises:
            AgentlaceError: the config has no ``broadcast_port``.
            Closed: after :meth:`stop`.
        """
        self._check_may_watch("register_obs_callback")

        def opened(tree: Any) -> None:
            callback(self._images.opened(tree))

        watcher = BroadcastWatcher(self._broker, self._keys, opened)
        self._watchers.append(watcher)
        watcher.start()

    def _check_may_watch(self, caller: str) -> None:
        self._check_usable()
        if self.config.broadcast_port is None:
            raise AgentlaceError(f"{caller} needs a broadcast_port in the ActionConfig")

    @property
    def missed_obs(self) -> int:
        """Observations that were published but that the callbacks did not get."""
        return sum(watcher.missed for watcher in self._watchers)

    def watch_latest(self) -> None:
        """Keep the newest broadcast observation in memory, in a thread of its own. Idempotent.

        From then on :meth:`latest` and :meth:`latest_obs` cost no round trip.

        Raises:
            AgentlaceError: the config has no ``broadcast_port``.
            Closed: after :meth:`stop`.
        """
        self._check_may_watch("watch_latest")
        with self._watch_lock:
            if self._newest is None:
                self._newest = NewestWatcher(self._broker, self._keys, self._images.opened)
                self._newest.start()

    def latest(self) -> Latest | None:
        """Return the newest broadcast observation with its age; None as long as there was none.

        It comes from memory. The first call begins to watch (:meth:`watch_latest`), which takes
        a round trip. An old one is returned too: its age tells that nothing new has come.

        Raises:
            AgentlaceError: the config has no ``broadcast_port``.
            Closed: after :meth:`stop`.
        """
        watcher = self._newest
        if watcher is None:
            self.watch_latest()
            watcher = self._newest
        self._check_usable()
        newest = None if watcher is None else watcher.newest
        if watcher is None or newest is None:
            return None
        return Latest(*newest, watcher.missed)

    def latest_obs(self) -> Any:
        """Return the newest broadcast observation; None if there was none in ten seconds.

        A round trip to the broker; none after :meth:`watch_latest`, where it is the same object
        until a newer one comes.
        """
        return self._softly(self._read_latest if self._newest is None else self._remembered_latest)

    def _read_latest(self) -> Any:
        with contextlib.closing(self._broker.channel(key=self._keys.prefix)) as channel:
            newest = read_newest(channel, self._keys)
            return None if newest is None else self._images.opened(newest.tree)

    def _remembered_latest(self) -> Any:
        latest = self.latest()
        return latest.obs if latest is not None and latest.age_s < NEWEST_MS / 1000 else None

    @property
    def image_times(self) -> dict[str, ImageTimes]:
        """What decoding and resizing have cost so far, by the place of the image."""
        return self._images.times

    def _measure(self) -> Iterator[Sample]:
        yield from super()._measure()
        newest = self._newest
        if self._watchers or newest is not None:
            missed = self.missed_obs + (0 if newest is None else newest.missed)
            yield Sample("observations_missed_total", missed)
        yield from self._images.samples()

    def stop(self) -> None:
        """Stop; callbacks that are running may finish first."""
        with self._watch_lock:
            watchers, self._newest = [*self._watchers, self._newest], None
        for watcher in filter(None, watchers):
            watcher.stop()
        super().stop()


def _checked_config(port: int | ActionConfig | None, config: ActionConfig | None) -> ActionConfig:
    """Return the config of ``(ip, config)`` and of ``(ip, port, config=config)``."""
    if isinstance(port, ActionConfig):
        port, config = None, port
    if not isinstance(config, ActionConfig):
        raise TypeError(f"config must be an ActionConfig, not {type(config).__name__}")
    if port is not None and port != config.port_number:
        raise AgentlaceError(
            f"port {port} differs from the config's port_number {config.port_number}"
        )
    return config
