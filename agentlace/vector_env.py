"""Many remote environments as one Gymnasium vector environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import Any

from agentlace.errors import MissingExtra
from agentlace.forks import check_process, process_number
from agentlace.gym_env import GymEnvClient

try:
    import gymnasium as gym
    from gymnasium.vector import SyncVectorEnv
    from gymnasium.vector.utils import iterate
except ImportError as error:
    raise MissingExtra("gymnasium", "gym") from error

__all__ = ["RemoteVectorEnv"]


class RemoteVectorEnv(SyncVectorEnv):
    """Environments behind :class:`~agentlace.gym_env.GymEnvServerWrapper`, stepped in parallel.

    It is a ``SyncVectorEnv`` over the remote environments, so batches, autoreset, final
    observations and infos are exactly its; but all of them are asked before the first answer is
    awaited, so that a step takes as long as the slowest one of them.

    Every call waits until all environments have answered, as :class:`GymEnvClient` does. If one
    raises, the others have still made their step: reset before going on.

    Args:
        ports: number of each environment's service.
        host: the broker's host, unless ``broker`` or AGENTLACE_BROKER says otherwise.
        client: arguments of each :class:`GymEnvClient`, such as ``timeout_ms`` or ``broker``.
        how: further arguments of ``SyncVectorEnv``, such as ``autoreset_mode``.

    Raises:
        ValueError: no port, or one of them twice.
        BrokerUnreachable, PeerAbsent: one is not there within five seconds.
        RemoteError: from any method, if an environment raised.
    """

    def __init__(
        self,
        ports: Sequence[int],
        host: str = "localhost",
        client: dict[str, Any] | None = None,
        **how: Any,
    ) -> None:
        if not ports or len(set(ports)) != len(ports):
            raise ValueError(f"ports={list(ports)}: name one for each environment, each once")
        self._made_in = process_number()
        self._pool = ThreadPoolExecutor(len(ports), thread_name_prefix="remote env")
        self._remotes = remotes = list[_Remote]()
        try:
            connect = partial(GymEnvClient, host, **(client or {}))
            for env in [self._pool.submit(connect, port) for port in ports]:
                remotes.append(_Remote(env.result(), self._pool))
            super().__init__([partial(_itself, env) for env in remotes], **how)
        except BaseException:
            self._pool.shutdown()
            for remote in remotes:
                remote.client.disconnect()
            self._remotes = []
            raise

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        """Reset all environments, or those of ``options["reset_mask"]``; as ``SyncVectorEnv``."""
        n = self.num_envs
        seeds = [seed + i for i in range(n)] if isinstance(seed, int) else seed or [None] * n
        mask = (options or {}).get("reset_mask", [True] * n)
        rest = options and {key: value for key, value in options.items() if key != "reset_mask"}
        with self._begun():
            if len(seeds) == len(mask) == n:  # else SyncVectorEnv says what is wrong
                for env, one, is_wanted in zip(self._remotes, seeds, mask, strict=True):
                    if is_wanted:
                        env.begin(partial(_reset, env.env, seed=one, options=rest))
            return super().reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        """Step all environments; as ``SyncVectorEnv``."""
        over = getattr(self, "_autoreset_envs", None)
        mode = getattr(self, "autoreset_mode", None)
        # Gymnasium before 1.0 resets in the same step, 1.0 in the next one.
        same_step = over is None if mode is None else mode.value == "SameStep"
        is_over = over if mode is None or mode.value == "NextStep" else None
        with self._begun():
            for i, action in enumerate(iterate(self.action_space, actions)):
                env = self._remotes[i]
                if is_over is not None and is_over[i]:
                    env.begin(partial(_reset, env.env))
                else:
                    env.begin(partial(_step, env.env, action, same_step))
            return super().step(actions)

    @contextmanager
    def _begun(self) -> Iterator[None]:
        """Leave only when everything that was begun has ended, also after an error."""
        check_process(self._made_in, "this vector environment")
        try:
            yield
        finally:
            for env in self._remotes:
                env.forget()

    def close_extras(self, **kwargs: Any) -> None:
        """Close all remote environments and the connections."""
        if self._made_in != process_number():
            return
        remotes, self._remotes = self._remotes, []
        for closing in [self._pool.submit(env.close) for env in remotes]:
            closing.result()
        self._pool.shutdown()

    def __enter__(self) -> RemoteVectorEnv:
        """Return the environment."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


class _Remote(gym.Wrapper):
    """Hands out what was begun in another thread before."""

    def __init__(self, env: GymEnvClient, pool: ThreadPoolExecutor) -> None:
        super().__init__(env)
        self.client = env
        self._pool = pool
        self._results: Future[list[Any]] | None = None

    def begin(self, call: Callable[[], list[Any]]) -> None:
        """Begin what the next :meth:`step` or :meth:`reset` is to return."""
        self._results = self._pool.submit(call)

    def forget(self) -> None:
        """Wait for what was begun, and drop what nobody asked for."""
        results, self._results = self._results, None
        if results is not None:
            wait([results])

    def _next(self) -> Any:
        assert self._results is not None
        return self._results.result().pop(0)

    def step(self, action: Any) -> Any:
        """Return what the step that was begun has given."""
        return self._next()

    def reset(self, **kwargs: Any) -> Any:
        """Return what the reset that was begun has given."""
        return self._next()


def _itself(env: _Remote) -> _Remote:
    return env


def _reset(env: gym.Env, **kwargs: Any) -> list[Any]:
    return [env.reset(**kwargs)]


def _step(env: gym.Env, action: Any, resets: bool) -> list[Any]:
    """Step; also reset, where that follows at once."""
    result = env.step(action)
    return [result, env.reset()] if resets and (result[2] or result[3]) else [result]
