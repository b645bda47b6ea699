"""The table of SB3's and sb3-contrib's algorithms: one record for each class of policy.

To add an algorithm: a record in `ALGORITHMS`, with the `Family` that says where its scores are. All that opens, saves
and names a policy reads it there.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from rlmech.adapters.sb3.scores import (
    ActorCriticScores,
    ActorScores,
    ContinuousScores,
    MaskedScores,
    OutputKind,
    QuantileScores,
    RecurrentScores,
    without_mask,
)
from rlmech.errors import CheckpointError, ConfigError
from rlmech.simulators.action_masks import MASK_KEY, masked_space

NetArch = list[int] | dict[str, list[int]]
Scores = tuple[nn.Module, OutputKind, str]
"""A module from observations to scores, what the scores are, and the root of its names."""


def _own_space(policy: Any) -> spaces.Space:
    return policy.observation_space


def _decide(policy: Any, obs: object, state: object) -> Tensor:
    return policy._predict(obs, deterministic=True)


def _decide_with_state(policy: Any, obs: object, state: Any) -> Tensor:
    n_rows = state[0][0].shape[1]
    starts = torch.zeros(n_rows, device=policy.device)
    return policy._predict(obs, lstm_states=state[0], episode_starts=starts, deterministic=True)[0]


def _forgotten(policy: Any) -> Callable[[int], Any]:
    """The state of zeros that each episode begins with, by the number of rows."""
    lstms = [lstm for lstm in (policy.lstm_actor, policy.lstm_critic) if lstm is not None]
    if any(lstm.bidirectional or lstm.batch_first for lstm in lstms):
        raise CheckpointError(
            "The policy's LSTM reads more than its past, or its batch as time.",
            given=f"lstm_kwargs={policy.lstm_kwargs}",
            expected="neither bidirectional nor batch_first, which sb3-contrib's own steps do not allow for",
            fix="train the policy without them",
        )

    def state(n_rows: int) -> tuple[tuple[Tensor, Tensor], ...]:
        return tuple(
            (
                torch.zeros(lstm.num_layers, n_rows, lstm.proj_size or lstm.hidden_size, device=policy.device),
                torch.zeros(lstm.num_layers, n_rows, lstm.hidden_size, device=policy.device),
            )
            for lstm in lstms
        )

    return state


def _with_mask(policy: Any) -> spaces.Space:
    """The policy's own observation and, beside it, what may be done."""
    return masked_space(policy.observation_space, policy.action_space)


def _decide_masked(policy: Any, obs: dict[str, Tensor], state: object) -> Tensor:
    return policy._predict(without_mask(obs), deterministic=True, action_masks=obs[MASK_KEY].cpu().numpy())


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Where the scores, the value and the weights of a kind of policy are.

    Attributes:
        scores: From the live policy to the module of its scores.
        owner: From that module to the live network that a plan is read off.
        key: From a name in that module's state dict to the name in `policy.pth`.
        extractor: Prefix of the features extractor's tensors in `policy.pth`.
        net_arch: From the tensors in `policy.pth` to the hidden sizes.
        observation_space: From the policy to the space of the observations that the module takes.
        decide: SB3's own greedy actions of such a batch, in a state where there is one.
        initial_state: From a policy with a memory to a function of the number of rows that gives the state at an
            episode's beginning; None for policies without.
    """

    scores: Callable[[Any], Scores]
    owner: Callable[[Any], Any]
    key: Callable[[str], str]
    extractor: str
    net_arch: Callable[[Mapping[str, Tensor]], NetArch]
    observation_space: Callable[[Any], spaces.Space] = _own_space
    decide: Callable[[object, object, object], Tensor] = _decide
    initial_state: Callable[[object], Callable[[int], object]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """One class of policy.

    Attributes:
        name: The class; a plan names it so.
        module: Where it is imported from.
        variants: Names of the class and its subclasses in that module -> the features extractor they take.
        family: Where its scores are.
        network: Class of the live network that its plan is read off, as it is called.
        activation: Its activation, where none is given.
        options: Constructor arguments that a zip or a live network tells, besides those that every policy has.
        has_extractor: Whether its constructor takes a features extractor, and a learning rate.
        earlier_names: Names of tensors in zips of earlier versions -> their names of today.
    """

    name: str
    module: str
    variants: Mapping[str, str]
    family: Family
    network: tuple[str, ...]
    activation: str = "ReLU"
    options: tuple[str, ...] = ()
    has_extractor: bool = True
    earlier_names: Mapping[str, str] = field(default_factory=dict[str, str])

    def policy_class(self) -> type[BasePolicy]:
        """The class itself.

        Raises:
            ConfigError: sb3-contrib is not installed.
        """
        try:
            return getattr(importlib.import_module(self.module), self.name)
        except ImportError as error:
            raise ConfigError(
                f"A {self.name} is sb3-contrib's, which is not installed.",
                given=f"import {self.module}: {error}",
                expected="sb3-contrib, of the version of stable-baselines3",
                fix="pip install sb3-contrib",
            ) from error


def sizes(tensors: Mapping[str, Tensor], prefix: str) -> list[int]:
    """Output sizes of the linear layers directly below a prefix, in order."""
    found = {
        int(match[1]): int(value.shape[0])
        for key, value in tensors.items()
        if (match := re.fullmatch(re.escape(prefix) + r"(\d+)\.weight", key)) and value.ndim == 2
    }
    return [found[index] for index in sorted(found)]


def plain(module: Any) -> Any:
    """The module that `torch.compile` wraps, or the module itself."""
    return getattr(module, "_orig_mod", module)


def _actor_critic_arch(tensors: Mapping[str, Tensor]) -> NetArch:
    shared = sizes(tensors, "mlp_extractor.shared_net.")
    own = {"pi": sizes(tensors, "mlp_extractor.policy_net."), "vf": sizes(tensors, "mlp_extractor.value_net.")}
    return {"shared": shared} | own if shared else own


def _actor_and_critics_arch(tensors: Mapping[str, Tensor]) -> NetArch:
    actor = sizes(tensors, "actor.latent_pi.") or sizes(tensors, "actor.mu.")[:-1]
    return {"pi": actor, "qf": sizes(tensors, "critic.qf0.")[:-1]}


def kind_of_scores(policy: BasePolicy) -> OutputKind:
    """What the scores of an actor are.

    Raises:
        CheckpointError: Its actions are neither one choice among several nor a vector.
    """
    if isinstance(policy.action_space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return "logits"  # of each choice, where there are several
    if isinstance(policy.action_space, spaces.Box):
        return "mean_action"
    raise CheckpointError(
        "The policy's actions are neither choices nor a vector.",
        given=f"action space {policy.action_space}",
        expected="Discrete, MultiDiscrete, MultiBinary or Box",
        fix="wrap a module of your own that gives scores: HookedPolicy(module, example_obs)",
    )


Q_VALUES = Family(
    scores=lambda policy: (plain(policy.q_net), "q_values", ""),
    owner=lambda network: network,
    key=lambda name: f"q_net.{name}",
    extractor="q_net.features_extractor.",
    net_arch=lambda tensors: sizes(tensors, "q_net.q_net.")[:-1],
)
QUANTILES = Family(
    scores=lambda policy: (QuantileScores(plain(policy.quantile_net)), "q_values", "quantile_net"),
    owner=lambda module: module.quantile_net,
    key=lambda name: name,
    extractor="quantile_net.features_extractor.",
    net_arch=lambda tensors: sizes(tensors, "quantile_net.quantile_net.")[:-1],
)
ACTOR_CRITIC = Family(
    scores=lambda policy: (ActorCriticScores(policy), kind_of_scores(policy), "policy"),
    owner=lambda module: module.policy,
    key=lambda name: name.removeprefix("policy."),
    extractor="features_extractor.",
    net_arch=_actor_critic_arch,
)
MASKED_ACTOR_CRITIC = replace(
    ACTOR_CRITIC,
    scores=lambda policy: (MaskedScores(policy), kind_of_scores(policy), "policy"),
    observation_space=_with_mask,
    decide=_decide_masked,
)
RECURRENT_ACTOR_CRITIC = replace(
    ACTOR_CRITIC,
    scores=lambda policy: (RecurrentScores(policy), kind_of_scores(policy), "policy"),
    decide=_decide_with_state,
    initial_state=_forgotten,
)
ACTOR = Family(
    scores=lambda policy: (ActorScores(policy), kind_of_scores(policy), "policy"),
    owner=lambda module: module.policy,
    key=lambda name: name.removeprefix("policy."),
    extractor="features_extractor.",
    net_arch=lambda tensors: sizes(tensors, "action_net.")[:-1],
)
ACTOR_AND_CRITICS = Family(
    scores=lambda policy: (ContinuousScores(plain(policy.actor), plain(policy.critic)), "mean_action", ""),
    owner=lambda module: module.actor,
    key=lambda name: name,
    extractor="actor.features_extractor.",
    net_arch=_actor_and_critics_arch,
)

_BY_OBSERVATION = {"CnnPolicy": "NatureCNN", "MultiInputPolicy": "CombinedExtractor"}
_CRITICS = ("use_sde", "n_critics", "share_features_extractor")

ALGORITHMS: tuple[Algorithm, ...] = (
    Algorithm(
        name="DQNPolicy",
        module="stable_baselines3.dqn.policies",
        variants={"DQNPolicy": "FlattenExtractor"} | _BY_OBSERVATION,
        family=Q_VALUES,
        network=("QNetwork",),
    ),
    Algorithm(  # PPO, A2C, and sb3-contrib's TRPO
        name="ActorCriticPolicy",
        module="stable_baselines3.common.policies",
        variants={
            "ActorCriticPolicy": "FlattenExtractor",
            "ActorCriticCnnPolicy": "NatureCNN",
            "MultiInputActorCriticPolicy": "CombinedExtractor",
        },
        family=ACTOR_CRITIC,
        network=("ActorCriticPolicy", "ActorCriticCnnPolicy", "MultiInputActorCriticPolicy"),
        activation="Tanh",
        options=("use_sde", "full_std", "squash_output", "use_expln", "share_features_extractor", "ortho_init"),
    ),
    Algorithm(
        name="SACPolicy",
        module="stable_baselines3.sac.policies",
        variants={"SACPolicy": "FlattenExtractor"} | _BY_OBSERVATION,
        family=ACTOR_AND_CRITICS,
        network=("Actor",),
        options=(*_CRITICS, "clip_mean", "use_expln"),
    ),
    Algorithm(  # DDPG is a TD3 with one critic
        name="TD3Policy",
        module="stable_baselines3.td3.policies",
        variants={"TD3Policy": "FlattenExtractor"} | _BY_OBSERVATION,
        family=ACTOR_AND_CRITICS,
        network=("Actor",),
        options=("n_critics", "share_features_extractor"),
    ),
    Algorithm(
        name="QRDQNPolicy",
        module="sb3_contrib.qrdqn.policies",
        variants={"QRDQNPolicy": "FlattenExtractor"} | _BY_OBSERVATION,
        family=QUANTILES,
        network=("QuantileNetwork",),
        options=("n_quantiles",),
    ),
    Algorithm(
        name="TQCPolicy",
        module="sb3_contrib.tqc.policies",
        variants={"TQCPolicy": "FlattenExtractor"} | _BY_OBSERVATION,
        family=ACTOR_AND_CRITICS,
        network=("Actor",),
        options=(*_CRITICS, "n_quantiles", "clip_mean", "use_expln"),
    ),
    Algorithm(
        name="CrossQPolicy",
        module="sb3_contrib.crossq.policies",
        variants={"CrossQPolicy": "FlattenExtractor"} | _BY_OBSERVATION,
        family=ACTOR_AND_CRITICS,
        network=("Actor",),
        options=(*_CRITICS, "clip_mean", "use_expln", "batch_norm", "batch_norm_eps"),
    ),
    Algorithm(
        name="MaskableActorCriticPolicy",
        module="sb3_contrib.common.maskable.policies",
        variants={
            "MaskableActorCriticPolicy": "FlattenExtractor",
            "MaskableActorCriticCnnPolicy": "NatureCNN",
            "MaskableMultiInputActorCriticPolicy": "CombinedExtractor",
        },
        family=MASKED_ACTOR_CRITIC,
        network=(
            "MaskableActorCriticPolicy",
            "MaskableActorCriticCnnPolicy",
            "MaskableMultiInputActorCriticPolicy",
        ),
        activation="Tanh",
        options=("share_features_extractor", "ortho_init"),
    ),
    Algorithm(  # RecurrentPPO
        name="RecurrentActorCriticPolicy",
        module="sb3_contrib.common.recurrent.policies",
        variants={
            "RecurrentActorCriticPolicy": "FlattenExtractor",
            "RecurrentActorCriticCnnPolicy": "NatureCNN",
            "RecurrentMultiInputActorCriticPolicy": "CombinedExtractor",
        },
        family=RECURRENT_ACTOR_CRITIC,
        network=(
            "RecurrentActorCriticPolicy",
            "RecurrentActorCriticCnnPolicy",
            "RecurrentMultiInputActorCriticPolicy",
        ),
        activation="Tanh",
        options=(
            *("use_sde", "full_std", "squash_output", "use_expln", "share_features_extractor", "ortho_init"),
            *("lstm_hidden_size", "n_lstm_layers", "shared_lstm", "enable_critic_lstm", "lstm_kwargs"),
        ),
    ),
    Algorithm(
        name="ARSPolicy",
        module="sb3_contrib.ars.policies",
        variants={"ARSPolicy": "FlattenExtractor", "ARSLinearPolicy": "FlattenExtractor"},
        family=ACTOR,
        network=("ARSPolicy", "ARSLinearPolicy"),
        options=("with_bias", "squash_output"),
        has_extractor=False,
        earlier_names={"action_net.weight": "action_net.0.weight", "action_net.bias": "action_net.0.bias"},
    ),
)
BY_NAME: dict[str, Algorithm] = {algorithm.name: algorithm for algorithm in ALGORITHMS}


def algorithm_of(policy: object) -> Algorithm:
    """The record of a live policy.

    Raises:
        CheckpointError: It is of no class in the table, or it has a memory that its class in the table has not.
    """
    known = {(algorithm.module, algorithm.name): algorithm for algorithm in ALGORITHMS}
    ancestors = [(base.__module__, base.__name__) for base in type(policy).__mro__]
    found = next((known[name] for name in ancestors if name in known), None)
    if found is not None and (found.family.initial_state is not None or not hasattr(policy, "lstm_actor")):
        return found
    raise CheckpointError(
        f"A {type(policy).__name__} is not a kind of policy that rlmech knows how to score actions with.",
        given=f"{type(policy).__module__}.{type(policy).__name__}",
        expected=f"one of {', '.join(BY_NAME)}",
        fix="wrap the network that scores the actions: HookedPolicy(module, example_obs)",
    )


def algorithm_of_scores(module: nn.Module) -> Algorithm | None:
    """The record that a module of scores was made by; None where it is no such module."""
    for algorithm in ALGORITHMS:
        try:
            network = algorithm.family.owner(module)
        except AttributeError:
            continue
        if type(network).__module__ == algorithm.module and type(network).__name__ in algorithm.network:
            return algorithm
    return None
