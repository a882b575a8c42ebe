"""Soft actor-critic in JAX and Flax, small enough to read in one sitting.

The algorithm is SAC with a learned temperature (Haarnoja et al. 2018,
arXiv:1812.05905) and an ensemble of critics whose target is the minimum over a
random subset of them (REDQ, Chen et al. 2021, arXiv:2101.05982); two critics
and no subset are plain SAC.

Actions live in [-1, 1]: wrap other environments in Gymnasium's `RescaleAction`.
A batch is a dict of arrays, `B` rows each: `observations` (B, O), `actions`
(B, A), `next_observations` (B, O), `rewards` (B,) and `masks` (B,). A mask is 0
where the environment *terminated* and 1 elsewhere, also where an episode was
only cut off by a time limit, since there the future still has a value.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0

tree_map = jax.tree_util.tree_map


@dataclasses.dataclass(frozen=True)
class SACConfig:
    """What stays fixed while an agent learns.

    Attributes:
        action_dim: Number of action components, `A`.
        hidden: Widths of the hidden layers of policy and critics.
        learning_rate: Adam's step size, for policy, critics and temperature.
        discount: Value of the next step's reward against this step's.
        tau: Share of the critics that flows into their targets per update.
        num_critics: Size of the ensemble.
        subset: How many critics make a target; None takes all of them.
        layer_norm: Whether critics normalise their layers, as RLPD's do (Ball et al. 2023,
            arXiv:2302.02948): it keeps values of actions that nobody took from running away.
        target_entropy: Entropy that the temperature aims at; None is `-A`.
    """

    action_dim: int
    hidden: tuple[int, ...] = (256, 256)
    learning_rate: float = 3e-4
    discount: float = 0.99
    tau: float = 0.005
    num_critics: int = 2
    subset: int | None = None
    layer_norm: bool = False
    target_entropy: float | None = None

    @property
    def entropy_goal(self) -> float:
        """The target entropy with its default filled in."""
        return -float(self.action_dim) if self.target_entropy is None else self.target_entropy


class MLP(nn.Module):
    """Dense layers with ReLU between them."""

    widths: tuple[int, ...]
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (..., in) to (..., widths[-1]), activated."""
        for width in self.widths:
            x = nn.Dense(width)(x)
            x = nn.relu(nn.LayerNorm()(x) if self.layer_norm else x)
        return x


class Policy(nn.Module):
    """Observation to mean and log standard deviation, before the tanh."""

    action_dim: int
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, observations: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map (..., O) to two arrays (..., A)."""
        x = MLP(self.hidden)(observations)
        log_std = nn.Dense(self.action_dim)(x)
        return nn.Dense(self.action_dim)(x), jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)


class Critic(nn.Module):
    """Observation and action to one value."""

    hidden: tuple[int, ...]
    layer_norm: bool = False

    @nn.compact
    def __call__(self, observations: jax.Array, actions: jax.Array) -> jax.Array:
        """Map (..., O) and (..., A) to (...)."""
        x = MLP(self.hidden, self.layer_norm)(jnp.concatenate([observations, actions], axis=-1))
        return nn.Dense(1)(x)[..., 0]


def ensemble(config: SACConfig) -> nn.Module:
    """Return `num_critics` critics with their own parameters, as one module: (E, B) values."""
    critics = nn.vmap(
        Critic,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=None,
        out_axes=0,
        axis_size=config.num_critics,
    )
    return critics(config.hidden, config.layer_norm)


def squashed_sample(
    mean: jax.Array, log_std: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draw tanh-Gaussian actions (..., A) and their log densities (...)."""
    noise = jax.random.normal(key, mean.shape)
    raw = mean + jnp.exp(log_std) * noise
    gaussian = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
    # log(1 - tanh(x)^2), written so that it neither over- nor underflows.
    squash = 2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))
    return jnp.tanh(raw), (gaussian - squash).sum(axis=-1)


@flax.struct.dataclass
class SACAgent:
    """An agent: `params` is its policy, all that an actor needs; the rest is the learner's."""

    params: Any
    critics: Any
    targets: Any
    log_alpha: jax.Array
    optimizers: Any
    key: jax.Array
    config: SACConfig = flax.struct.field(pytree_node=False)

    @classmethod
    def create(cls, seed: int, observation: np.ndarray, config: SACConfig) -> SACAgent:
        """Return a fresh agent for observations shaped like `observation` (O,)."""
        return _create(seed, np.shape(observation), config)

    def act(self, observation: np.ndarray, key: jax.Array) -> tuple[np.ndarray, jax.Array]:
        """Return one action (A,) to explore with, and the key for the next call."""
        action, key = _act(self.config, self.params, np.asarray(observation, np.float32), key)
        return np.asarray(action), key

    def update(self, batches: dict[str, Any]) -> tuple[SACAgent, dict[str, jax.Array]]:
        """Make one gradient update per batch.

        Args:
            batches: A dict as described above; each array is (U, B, ...) for U updates.

        Returns:
            The next agent, and losses averaged over the U updates.
        """
        return _update(self, batches)


# Compiled as a whole: layer by layer, the start takes seconds.
@partial(jax.jit, static_argnums=(1, 2))
def _create(seed: int, shape: tuple[int, ...], config: SACConfig) -> SACAgent:
    key, policy_key, critic_key = jax.random.split(jax.random.PRNGKey(seed), 3)
    observations = jnp.zeros((1, *shape))
    actions = jnp.zeros((1, config.action_dim))
    params = Policy(config.action_dim, config.hidden).init(policy_key, observations)
    critics = ensemble(config).init(critic_key, observations, actions)
    log_alpha = jnp.zeros(())
    adam = optax.adam(config.learning_rate)
    return SACAgent(
        params=params,
        critics=critics,
        targets=critics,
        log_alpha=log_alpha,
        optimizers=tuple(adam.init(part) for part in (critics, params, log_alpha)),
        key=key,
        config=config,
    )


@partial(jax.jit, static_argnums=0)
def _act(
    config: SACConfig, params: Any, observation: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    key, noise_key = jax.random.split(key)
    mean, log_std = Policy(config.action_dim, config.hidden).apply(params, observation)
    return squashed_sample(mean, log_std, noise_key)[0], key


@jax.jit
def _update(agent: SACAgent, batches: dict[str, Any]) -> tuple[SACAgent, dict[str, jax.Array]]:
    agent, info = jax.lax.scan(_step, agent, batches)
    return agent, tree_map(jnp.mean, info)


def _step(agent: SACAgent, batch: dict[str, Any]) -> tuple[SACAgent, dict[str, jax.Array]]:
    """One update of critics, policy, temperature and targets, on one batch."""
    config, (critic_opt, policy_opt, alpha_opt) = agent.config, agent.optimizers
    key, target_key, policy_key = jax.random.split(agent.key, 3)
    goal = _critic_goal(agent, batch, target_key)
    critics, critic_opt, critic_loss, _ = _descend(
        config, partial(_critic_loss, config, batch, goal), agent.critics, critic_opt
    )
    params, policy_opt, _, entropy = _descend(
        config,
        partial(_policy_loss, config, batch, critics, agent.log_alpha, policy_key),
        agent.params,
        policy_opt,
    )
    log_alpha, alpha_opt, _, _ = _descend(
        config, partial(_alpha_loss, entropy - config.entropy_goal), agent.log_alpha, alpha_opt
    )
    tau = config.tau
    agent = agent.replace(
        params=params,
        critics=critics,
        targets=tree_map(lambda new, old: tau * new + (1 - tau) * old, critics, agent.targets),
        log_alpha=log_alpha,
        optimizers=(critic_opt, policy_opt, alpha_opt),
        key=key,
    )
    info = {"critic_loss": critic_loss, "entropy": entropy, "temperature": jnp.exp(log_alpha)}
    return agent, info


def _descend(
    config: SACConfig, loss_fn: Any, params: Any, opt_state: Any
) -> tuple[Any, Any, jax.Array, Any]:
    """One Adam step down `loss_fn(params) -> (loss, extra)`."""
    (loss, extra), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optax.adam(config.learning_rate).update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, loss, extra


def _critic_goal(agent: SACAgent, batch: dict[str, Any], key: jax.Array) -> jax.Array:
    """The soft Bellman target (B,)."""
    config, (action_key, subset_key) = agent.config, jax.random.split(key)
    policy = Policy(config.action_dim, config.hidden)
    actions, log_prob = squashed_sample(
        *policy.apply(agent.params, batch["next_observations"]), action_key
    )
    values = ensemble(config).apply(agent.targets, batch["next_observations"], actions)
    if config.subset is not None:
        chosen = jax.random.permutation(subset_key, config.num_critics)[: config.subset]
        values = values[chosen]
    future = values.min(axis=0) - jnp.exp(agent.log_alpha) * log_prob
    return batch["rewards"] + config.discount * batch["masks"] * future


def _critic_loss(
    config: SACConfig, batch: dict[str, Any], goal: jax.Array, critics: Any
) -> tuple[jax.Array, None]:
    values = ensemble(config).apply(critics, batch["observations"], batch["actions"])
    return ((values - goal) ** 2).mean(axis=1).sum(), None


def _policy_loss(
    config: SACConfig,
    batch: dict[str, Any],
    critics: Any,
    log_alpha: jax.Array,
    key: jax.Array,
    params: Any,
) -> tuple[jax.Array, jax.Array]:
    mean, log_std = Policy(config.action_dim, config.hidden).apply(params, batch["observations"])
    actions, log_prob = squashed_sample(mean, log_std, key)
    values = ensemble(config).apply(critics, batch["observations"], actions)
    # A subset means an ensemble in the sense of REDQ, whose policy follows the mean.
    value = values.min(axis=0) if config.subset is None else values.mean(axis=0)
    return (jnp.exp(log_alpha) * log_prob - value).mean(), -log_prob.mean()


def _alpha_loss(surplus: jax.Array, log_alpha: jax.Array) -> tuple[jax.Array, None]:
    """Lower the temperature while the policy has more entropy than wanted."""
    return jnp.exp(log_alpha) * jax.lax.stop_gradient(surplus), None
