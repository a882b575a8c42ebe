"""A Gymnasium environment that lives in another process or on another machine."""

from __future__ import annotations

import logging
import threading
from typing import Any

from agentlace.action import ActionClient, ActionServer
from agentlace.config import ActionConfig, BrokerURL
from agentlace.errors import AgentlaceError, Closed, MissingExtra

try:
    import gymnasium as gym
except ImportError as error:
    raise MissingExtra("gymnasium", "gym") from error

__all__ = ["DefaultActionConfig", "GymEnvClient", "GymEnvServerWrapper"]

log = logging.getLogger(__name__)

DEFAULT_PORT = 5546


def _config(port: int) -> ActionConfig:
    return ActionConfig(
        port_number=port,
        action_keys=["reset", "step", "render", "close"],
        observation_keys=["observation_space", "action_space", "metadata", "render_mode"],
        broadcast_port=port + 1,
    )


DefaultActionConfig = _config(DEFAULT_PORT)


class GymEnvServerWrapper(gym.Wrapper):
    """Serves an environment to a :class:`GymEnvClient`; a wrapper, so it still steps locally.

    Args:
        env: the environment.
        port: names the service; no port is opened.
        broker: address; else AGENTLACE_BROKER, else this machine's, started if there is none.
    """

    def __init__(
        self, env: Any, port: int = DEFAULT_PORT, broker: str | BrokerURL | None = None
    ) -> None:
        super().__init__(env)
        self._server = ActionServer(_config(port), self._observe, self._act, broker=broker)

    def start(self, threaded: bool = False) -> None:
        """Serve, in this thread until ``stop``, or in one of its own."""
        self._server.start(threaded)

    def stop(self) -> None:
        """Stop serving; the environment stays open."""
        self._server.stop()

    def close(self) -> None:
        """Stop serving and close the environment. Leaving a ``with`` block does so too."""
        self.stop()
        super().close()

    def _observe(self, keys: set[str]) -> dict[str, Any]:
        return {
            "observation_space": self.env.observation_space,
            "action_space": self.env.action_space,
            "metadata": {key: value for key, value in self.env.metadata.items() if _plain(value)},
            "render_mode": self.env.render_mode,
        }

    def _act(self, key: str, payload: Any) -> dict[str, Any]:
        if key == "reset":
            return {"act_ret": self.env.reset(**payload)}
        if key == "step":
            return {"act_ret": self.env.step(payload)}
        if key == "render":
            return {"act_ret": self.env.render()}
        self.env.close()
        return {"act_ret": None}


def _plain(value: Any) -> bool:
    """Whether a metadata value is of a type that travels."""
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or type(value) in (bool, int, float, str)


class GymEnvClient(gym.Env):
    """A remote environment: steps are executed where :class:`GymEnvServerWrapper` runs.

    Every call waits until the server has answered, repeating itself every ``timeout_ms`` and
    logging what it waits for. A repeated step is never executed twice: the server remembers.

    Args:
        host: the broker's host, unless ``broker`` or AGENTLACE_BROKER says otherwise.
        port: number of the service.
        retry_interval: pause between repetitions in seconds.
        timeout_ms: deadline of one repetition.
        broker: address; else AGENTLACE_BROKER, else ``host``'s.

    Raises:
        BrokerUnreachable, PeerAbsent: not there within five seconds.
        RemoteError: from any method, if the environment raised there, or its server was
            restarted while a step was under way.
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = DEFAULT_PORT,
        retry_interval: float = 0.5,
        timeout_ms: float = 800,
        broker: str | BrokerURL | None = None,
    ) -> None:
        self._retry_interval = retry_interval
        self._closed = threading.Event()
        self._client = ActionClient(
            host, _config(port), timeout_ms=timeout_ms, strict=False, broker=broker
        )
        try:
            about = self._persist(self._client.obs)
        except BaseException:
            self._client.stop()
            raise
        self.observation_space = about["observation_space"]
        self.action_space = about["action_space"]
        self.metadata = about["metadata"]
        self.render_mode = about["render_mode"]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the remote environment; returns observation and info."""
        super().reset(seed=seed)
        result = self._act("reset", {"seed": seed, "options": options})
        return result[0], result[1]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the remote environment; returns what ``env.step`` returned there."""
        result = self._act("step", action)
        return result[0], result[1], result[2], result[3], result[4]

    def render(self) -> Any:
        """Render in the remote environment, in the mode that it was made with."""
        return self._act("render", {})

    def close(self) -> None:
        """Close the remote environment and the connection. Idempotent."""
        if self._closed.is_set():
            return
        self._client.act("close")
        self.disconnect()

    def disconnect(self) -> None:
        """Close the connection; the remote environment stays open. Idempotent."""
        self._closed.set()
        self._client.stop()

    def _act(self, key: str, payload: Any) -> Any:
        ticket = self._client.new_ticket()
        return self._persist(lambda: self._client.act(key, payload, ticket=ticket))["act_ret"]

    def _persist(self, call: Any) -> Any:
        """Repeat a call until it is answered."""
        while (result := call()) is None:
            error = self._client.last_error
            if error is None or not isinstance(error, (TimeoutError, ConnectionError)):
                raise error or AgentlaceError("the server answered with None")
            log.info("the environment waits: %s", error)
            if self._closed.wait(self._retry_interval):
                raise Closed("the environment was closed")
        return result
