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
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from rlmech.core.points import QUANTILES
from rlmech.simulators.action_masks import MASK_KEY, OBSERVATION_KEY

OutputKind = Literal["q_values", "logits", "mean_action"]
LSTMState = tuple[Float[Tensor, "layer batch unit"], Float[Tensor, "layer batch unit"]]
FORBIDDEN = -1e8


class ActorCriticScores(nn.Module):
    """An actor-critic policy: observation -> (logits or mean action, value).

    The mean action is in the unit of the action space, before SB3 clips it to the bounds.
    """

    def __init__(self, policy: BasePolicy) -> None:
        super().__init__()
        self.policy = policy
        self.squashed = _Unscaled(policy) if policy.squash_output else None

    def forward(self, obs: Any) -> tuple[Float[Tensor, "batch action"], Float[Tensor, "batch 1"]]:
        """Score the actions and estimate the value."""
        policy: Any = self.policy
        features = policy.extract_features(obs)
        extractor = policy.mlp_extractor
        if isinstance(extractor, SharedLayers):
            features = extractor.shared_net(features)
        actor_features, critic_features = features if isinstance(features, tuple) else (features, features)
        scores = policy.action_net(extractor.policy_net(actor_features))
        value = policy.value_net(extractor.value_net(critic_features))
        return scores if self.squashed is None else self.squashed(torch.tanh(scores)), value


class RecurrentScores(nn.Module):
    """A recurrent actor-critic (RecurrentPPO): observation and state -> (logits or mean action, value, state).

    The state holds `(h, c)` of the actor's LSTM and, where the critic has its own, of the critic's, each
    `[layer batch unit]`. An episode's beginning is a state of zeros: `episode_start` is not an input.
    """

    def __init__(self, policy: BasePolicy) -> None:
        super().__init__()
        self.policy = policy
        self.squashed = _Unscaled(policy) if policy.squash_output else None

    def forward(
        self, obs: Any, state: tuple[LSTMState, ...]
    ) -> tuple[Float[Tensor, "batch action"], Float[Tensor, "batch 1"], tuple[LSTMState, ...]]:
        """Score the actions, estimate the value, and go on to the next state."""
        policy: Any = self.policy
        features = policy.extract_features(obs)
        actor_features, critic_features = features if isinstance(features, tuple) else (features, features)
        latent, after = policy.lstm_actor(actor_features.unsqueeze(0), state[0])
        latent, states = latent.squeeze(0), (after,)
        if policy.lstm_critic is not None:
            of_critic, after = policy.lstm_critic(critic_features.unsqueeze(0), state[1])
            of_critic, states = of_critic.squeeze(0), (*states, after)
        else:
            of_critic = latent if policy.shared_lstm else policy.critic(critic_features)
        scores = policy.action_net(policy.mlp_extractor.forward_actor(latent))
        value = policy.value_net(policy.mlp_extractor.forward_critic(of_critic))
        return scores if self.squashed is None else self.squashed(torch.tanh(scores)), value, states


class SharedLayers(nn.Module):
    """SB3's `mlp_extractor` of before 1.8, whose first layers actor and critic share.

    Args:
        shared_net: The shared layers.
        policy_net: The actor's, on the shared features.
        value_net: The critic's.
    """

    def __init__(self, shared_net: nn.Sequential, policy_net: nn.Sequential, value_net: nn.Sequential) -> None:
        super().__init__()
        self.shared_net, self.policy_net, self.value_net = shared_net, policy_net, value_net

    def forward_actor(self, features: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch neuron"]:
        """The actor's latent, for SB3's own `predict`."""
        return self.policy_net(self.shared_net(features))

    def forward_critic(self, features: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch neuron"]:
        """The critic's latent, for SB3's own `predict_values`."""
        return self.value_net(self.shared_net(features))

    def forward(self, features: Float[Tensor, "batch feature"]) -> tuple[Tensor, Tensor]:
        """Both latents."""
        shared = self.shared_net(features)
        return self.policy_net(shared), self.value_net(shared)


class ActorScores(nn.Module):
    """A policy that is an actor alone (ARS): observation -> logits or action.

    A continuous action is in the unit of the action space, before it is clipped to the bounds.
    """

    def __init__(self, policy: BasePolicy) -> None:
        super().__init__()
        self.policy = policy
        self.unscale = _Unscaled(policy) if policy.squash_output else None

    def forward(self, obs: Any) -> Float[Tensor, "batch action"]:
        """Score the actions."""
        policy: Any = self.policy
        scores = policy.action_net(policy.extract_features(obs, policy.features_extractor))
        return scores if self.unscale is None else self.unscale(scores)


class QuantileScores(nn.Module):
    """A quantile network (QR-DQN): observation -> Q-values, the mean over each action's quantiles.

    The quantiles themselves, `[batch axis_1 action]`, are the hook point `hook_quantiles`.
    """

    def __init__(self, quantile_net: nn.Module) -> None:
        super().__init__()
        self.quantile_net = quantile_net
        self.add_module(QUANTILES, _Mean())

    def forward(self, obs: object) -> Float[Tensor, "batch action"]:
        """Score the actions."""
        return self.get_submodule(QUANTILES)(self.quantile_net(obs))


class _Mean(nn.Module):
    """The mean over quantiles."""

    def forward(self, quantiles: Float[Tensor, "batch axis_1 action"]) -> Float[Tensor, "batch action"]:
        return quantiles.mean(dim=1)


class ContinuousScores(nn.Module):
    """An actor and its critics (SAC, TD3, TQC, CrossQ): observation -> (deterministic action, its value).

    The action is in the unit of the action space. The value is the least of the critics' at that action; of critics
    that give quantiles (TQC) it is the mean over all.
    """

    def __init__(self, actor: nn.Module, critic: nn.Module) -> None:
        super().__init__()
        self.actor, self.critic = actor, critic
        self.unscale = _Unscaled(cast(BasePolicy, actor))

    def forward(self, obs: Any) -> tuple[Float[Tensor, "batch action"], Float[Tensor, " batch"]]:
        """Give the action and estimate its value."""
        actor: Any = self.actor
        critic: Any = self.critic
        features = actor.extract_features(obs, actor.features_extractor)
        squashed = (
            actor.mu(features) if not hasattr(actor, "latent_pi") else torch.tanh(actor.mu(actor.latent_pi(features)))
        )
        critic_features = critic.extract_features(obs, critic.features_extractor)
        pair = torch.cat([critic_features, squashed], dim=1)
        values = torch.cat([net(pair) for name, net in critic.named_children() if name.startswith("qf")], dim=1)
        value = values.mean(dim=1) if hasattr(critic, "n_quantiles") else values.min(dim=1).values
        return self.unscale(squashed), value


class MaskedScores(ActorCriticScores):
    """A maskable actor-critic (MaskablePPO): observation and its action mask -> (masked logits, value).

    The observation is a dict: the policy's own under `observation` (its own keys, where it is a dict itself), and
    under `action_mask` what may be done, booleans `[batch action]`. A forbidden action's logit is -1e8, as
    sb3-contrib has it.
    """

    def forward(self, obs: dict[str, Tensor]) -> tuple[Float[Tensor, "batch action"], Float[Tensor, "batch 1"]]:
        """Score the actions that may be done, and estimate the value."""
        logits, value = super().forward(without_mask(obs))
        return torch.where(obs[MASK_KEY], logits, torch.full_like(logits, FORBIDDEN)), value


def without_mask(obs: dict[str, Tensor]) -> Any:
    """A maskable policy's own observation, out of the dict that holds its mask too."""
    return obs[OBSERVATION_KEY] if OBSERVATION_KEY in obs else {k: v for k, v in obs.items() if k != MASK_KEY}


class _Unscaled(nn.Module):
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
