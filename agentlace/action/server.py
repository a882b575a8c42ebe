"""The action service's serving end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from agentlace.action.known import check_known
from agentlace.action.publishing import ObsCallback, PublishingServer
from agentlace.config import ActionConfig, BrokerURL

ActCallback = Callable[[str, Any], Any]
"""Called with the action's key and payload; returns the reply."""


class ActionServer(PublishingServer):
    """Serves observations and executes actions, one request after the other.

    ``obs_callback`` and ``act_callback`` never run at the same time, whichever thread calls them.

    Args:
        config: the service; it is copied.
        obs_callback: called with the set of requested keys, returns the observation.
        act_callback: called with key and payload, returns the reply. Each action is executed at
            most once.
        log_level: of the logger ``agentlace.action``.
        broker: address; else AGENTLACE_BROKER, else this machine's, started if there is none.

    Raises:
        BadSetting: the config names an image codec that there is not.
        MissingExtra: the config has image codecs, and OpenCV is not installed.
    """

    def __init__(
        self,
        config: ActionConfig,
        obs_callback: ObsCallback | None,
        act_callback: ActCallback | None,
        log_level: int = logging.WARNING,
        broker: str | BrokerURL | None = None,
    ) -> None:
        super().__init__(config, obs_callback, log_level, broker)
        self._act_callback = act_callback

    def _handle(self, what: str, name: str, payload: Any) -> Any:
        if what == "act" and self._act_callback is not None:
            if name not in self.config.action_keys:
                check_known([name], self.config.action_keys, "action")
            with self._handling:
                return self._act_callback(name, payload)
        if what == "obs" and self._obs_callback is not None:
            check_known(payload, self.config.observation_keys, "observation")
            with self._handling:
                return self._looked(self._obs_callback, set(payload))
        return {"success": False, "message": f"this server has no {what}_callback"}
