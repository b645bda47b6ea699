"""SB3 policies as functions from observations to action scores and values.

`policy.forward` of SB3 samples an action, and `predict` calls `forward_actor` past the modules above it. These thin
wrappers call the same parts in the same order and return what the decision is made of. They hold the live modules
themselves: training goes on underneath.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy, ContinuousCritic
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from rlmech.errors import CheckpointError

OutputKind = Literal["q_values", "logits", "mean_action"]


class ActorCriticScores(nn.Module):
    """An actor-critic policy: observation -> (logits or mean action, value).

    The mean action is in the unit of the action space, before SB3 clips it to the bounds.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.squashed = _SquashedAction(policy) if policy.squash_output else None

    def forward(self, obs: Any) -> tuple[Float[Tensor, "batch action"], Float[Tensor, "batch 1"]]:
        """Score the actions and estimate the value."""
        policy = self.policy
        features = policy.extract_features(obs)
        actor_features, critic_features = features if isinstance(features, tuple) else (features, features)
        scores = policy.action_net(policy.mlp_extractor.forward_actor(actor_features))
        value = policy.value_net(policy.mlp_extractor.forward_critic(critic_features))
        return scores if self.squashed is None else self.squashed(torch.tanh(scores)), value


class ContinuousScores(nn.Module):
    """The actor and the critics of SAC or TD3: observation -> (deterministic action, min over critics of Q there).

    The action is in the unit of the action space.
    """

    def __init__(self, actor: nn.Module, critic: ContinuousCritic) -> None:
        super().__init__()
        self.actor, self.critic = actor, critic
        self.unscale = _SquashedAction(cast(BasePolicy, actor))

    def forward(self, obs: Any) -> tuple[Float[Tensor, "batch action"], Float[Tensor, " batch"]]:
        """Give the action and estimate its value."""
        actor: Any = self.actor
        features = actor.extract_features(obs, actor.features_extractor)
        squashed = (
            actor.mu(features) if not hasattr(actor, "latent_pi") else torch.tanh(actor.mu(actor.latent_pi(features)))
        )
        critic_features = self.critic.extract_features(obs, self.critic.features_extractor)
        pair = torch.cat([critic_features, squashed], dim=1)
        q_values = [critic(pair) for name, critic in self.critic.named_children() if name.startswith("qf")]
        return self.unscale(squashed), torch.cat(q_values, dim=1).min(dim=1).values


class _SquashedAction(nn.Module):
    """From [-1, 1] to the action space."""

    low: Tensor
    high: Tensor

    def __init__(self, policy: BasePolicy) -> None:
        super().__init__()
        space = cast(spaces.Box, policy.action_space)
        self.register_buffer("low", torch.as_tensor(space.low.ravel()), persistent=False)
        self.register_buffer("high", torch.as_tensor(space.high.ravel()), persistent=False)

    def forward(self, squashed: Float[Tensor, "batch action"]) -> Float[Tensor, "batch action"]:
        return self.low + (0.5 * (squashed + 1.0) * (self.high - self.low))


def scores_module(policy: BasePolicy) -> tuple[nn.Module, OutputKind, str]:
    """The module from observations to scores of an SB3 policy, what the scores are, and the root of its names.

    Raises:
        CheckpointError: The policy's actions are not one choice among several, nor a vector; or it is of another kind.
    """
    match policy:
        case DQNPolicy():
            return policy.q_net, "q_values", ""
        case ActorCriticPolicy() if not hasattr(policy, "lstm_actor"):
            return ActorCriticScores(policy), _scores_of(policy.action_space), "policy"
        case SACPolicy() | TD3Policy():
            return ContinuousScores(policy.actor, policy.critic), "mean_action", ""
        case _:
            raise CheckpointError(
                f"A {type(policy).__name__} is not a kind of policy that rlmech knows how to score actions with.",
                given=f"{type(policy).__module__}.{type(policy).__name__}",
                expected="a policy of DQN, PPO, A2C, SAC, TD3 or DDPG, without memory",
                fix="wrap the network that scores the actions: HookedPolicy(module, example_obs)",
            )


def _scores_of(space: spaces.Space[Any]) -> OutputKind:
    if isinstance(space, spaces.Discrete):
        return "logits"
    if isinstance(space, spaces.Box):
        return "mean_action"
    raise CheckpointError(
        "The policy makes several choices at once, so its logits are not the scores of one action.",
        given=f"action space {space}",
        expected="Discrete or Box",
        fix="wrap one choice's logits as a module of your own: HookedPolicy(module, example_obs)",
    )
