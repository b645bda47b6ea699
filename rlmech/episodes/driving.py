"""What drives an episode: a policy, the edits that act in it, and when they do.

At each step the unedited policy is asked too, so that it is known in which states the edits changed the action. What an
edit draws at random follows from its own seed and the episode's, so that an episode never depends on those before it.
Cost: a forward pass a step, a second one where edits are at work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rlmech.core.acting import choose_actions
from rlmech.core.edit import AtSteps, Edit
from rlmech.core.hook_point import at_step
from rlmech.episodes.when import Moment, When, when_of
from rlmech.errors import ConfigError
from rlmech.simulators.protocol import Value
from rlmech.untyped import Row

if TYPE_CHECKING:
    from rlmech.core.policy import HookedPolicy

DRAWS = 0x5EED
"""What tells the stream that actions are drawn from from others of the same seed."""
Hook = tuple[str, Callable[..., Any]]
Names = None | str | Sequence[str] | Callable[[str], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A way to drive: what `compare_rollouts` compares.

    Attributes:
        edits: Edits, or TransformerLens's pairs of a name and a function `fn(tensor, hook)`, in order.
        when: When they act: None for always, a step, several, a range, one of `rlm.episodes.when`, a function of
            a `Moment`.
        policy: Another policy than the one compared with.

    Example:
        >>> import rlmech as rlm
        >>> late = rlm.Condition(edits=[rlm.zero_ablation("1.hook_out")], when=rlm.episodes.when.from_step(5))
        >>> str(late.when)
        'from step 5 to the end'
    """

    edits: Sequence[Edit | Hook] = ()
    when: When | Callable[[Moment], bool] | int | Iterable[int] | None = None
    policy: HookedPolicy | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What the unedited policy makes of an observation.

    Attributes:
        scores: `[1, action]`.
        activations: Those asked for.
        action: What it would do.
        state: Its state afterwards, of a recurrent policy.
    """

    scores: Tensor
    activations: Mapping[str, Tensor]
    action: Any
    state: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided in a moment, and how.

    Attributes:
        action: What is done.
        scores: `[action]`.
        activations: Those asked for, without their batch axis.
        edited: Whether edits were at work.
        action_changed: Whether the unedited policy would have done something else.
    """

    action: Any
    scores: np.ndarray
    activations: dict[str, np.ndarray]
    edited: bool
    action_changed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """A policy with edits, checked and ready to drive.

    Attributes:
        policy: The policy.
        edits: What acts in it, in order.
        when: When; None for always.
        names: Hook points whose values are kept; of a recurrent policy its state is, besides.
        deterministic: Whether the best action is done; else it is drawn, with numbers that follow from the episode's
            seed alone, so that one number decides in a step whatever is edited.
    """

    policy: HookedPolicy
    edits: tuple[Edit | Hook, ...] = ()
    when: When | None = None
    names: Names = ()
    deterministic: bool = True

    def __post_init__(self) -> None:
        if not self.deterministic and self.policy.output_kind != "logits":
            raise ConfigError(
                "Only the actions of logits can be drawn.",
                given=f"deterministic=False, and a policy whose scores are {self.policy.output_kind}",
                expected="a policy with logits: Q-values have no probabilities, and a mean action not its spread",
                fix="leave deterministic=True",
            )
        known = tuple(edit.on(self.policy) if isinstance(edit, Edit) else edit for edit in self.edits)
        object.__setattr__(self, "edits", known)  # observations as a reference are run on once, not in each episode
        given: tuple[Any, ...] = self.edits
        for edit in given:  # an edit that does not fit is told before the first episode
            if isinstance(edit, Edit):
                edit.bind(self.policy.point(edit.site.name))
            elif not (isinstance(edit, tuple) and len(edit) == 2 and isinstance(edit[0], str) and callable(edit[1])):
                raise ConfigError(
                    "That is no edit.",
                    given=repr(edit),
                    expected="an Edit, or a pair of a hook name and a function fn(tensor, hook)",
                    fix="e.g. rlm.zero_ablation(rlm.Site('attention_layer.hook_z', head=3))",
                )
            else:
                self.policy.point(edit[0])
        if self.when is not None and not self.edits:
            raise ConfigError(
                "There is nothing that could act when the condition holds.",
                given=f"when={str(self.when)!r} and no edits",
                expected="edits to go with it",
                fix="give edits, or leave 'when' out",
            )

    @classmethod
    def of(cls, policy: HookedPolicy, condition: Condition, *, names: Names = (), deterministic: bool = True) -> Driver:
        """The driver of a condition, the policy being that of the baseline."""
        return cls(
            policy=condition.policy or policy,
            edits=tuple(condition.edits),
            when=when_of(condition.when),
            names=names,
            deterministic=deterministic,
        )

    def describe(self) -> dict[str, object]:
        """What tells this driver from others, for a manifest; functions are told by their names alone."""
        return {
            "policy": {"fingerprint": self.policy.fingerprint, "output_kind": self.policy.output_kind},
            "deterministic": self.deterministic,
            "edits": [str(edit) if isinstance(edit, Edit) else f"{edit[0]}: {_named(edit[1])}" for edit in self.edits],
            "edits_digest": [_digest(edit) if isinstance(edit, Edit) else None for edit in self.edits],
            "when": None if self.when is None else str(self.when),
            "when_told": self.when is None or self.when.told,
        }

    @property
    def unedited_names(self) -> Names:
        """Hook points whose values are kept of the unedited policy: none where edits are at work at every step."""
        in_time = any(
            isinstance(edit, Edit) and dict(edit.site.selection).get("step") is not None for edit in self.edits
        )
        return () if self.edits and self.when is None and not in_time else self.names

    def look(
        self,
        observation: Any,
        names: Names,
        *,
        state: Mapping[str, Tensor] | None = None,
        uniform: np.ndarray | None = None,
    ) -> Look:
        """What the policy, with whatever hooks are attached to it now, makes of one observation.

        Args:
            observation: What is observed.
            names: Hook points whose values are kept.
            state: The state that it comes in with; None for that of an episode's beginning.
            uniform: The number that draws its action, one for each choice; None for the best one.
        """
        policy, batch = self.policy, _batched(observation)
        if policy.is_recurrent:
            batch = policy.with_state(batch, state)
            kept = tuple(dict.fromkeys((*(site.name for site in policy.sites(names)), *policy.state_names)))
            scores, activations = policy.run_with_cache(batch, kept)
        elif names is not None and not callable(names) and len(names) == 0:
            scores, activations = policy(batch), {}
        else:
            scores, activations = policy.run_with_cache(batch, names)
        after = {name: activations[name] for name in policy.state_names}
        action = choose_actions(
            scores, policy.output_kind, policy.action_space, deterministic=uniform is None, uniform=uniform
        )[0]
        return Look(scores, activations, action if np.ndim(action) else int(action), after)


@dataclass(slots=True)
class Drive:
    """One episode of a driver.

    Args:
        driver: The driver.
        seed: The episode's seed.
        action_names: Names of the environment's actions; the policy's own come first.
        measure: The simulator's `step_values`.
    """

    driver: Driver
    seed: int
    action_names: tuple[str, ...] = ()
    measure: Callable[[Sequence[tuple[object, ...]]], Mapping[str, Value | str]] = field(default=lambda entities: {})
    _hooks: list[Hook] = field(init=False)
    _draws: np.random.Generator = field(init=False)
    _uniform: np.ndarray | None = field(init=False, default=None)
    _state: Mapping[str, Tensor] | None = None
    _previous: object = None
    _step: int = 0

    def __post_init__(self) -> None:
        self._hooks = [self._bound(edit) for edit in self.driver.edits]
        self._draws = np.random.default_rng([DRAWS, self.seed])
        self._draw()

    @property
    def told(self) -> tuple[object, ...]:
        """What the unedited policy's view follows from, beside the observation: its state, and the number drawn."""
        state = self._state or {}
        parts = (part.cpu().numpy().tobytes() for part in state.values())
        return (*parts, None if self._uniform is None else self._uniform.tobytes())

    def look(self, observation: Any, names: Names) -> Look:
        """What the policy, with whatever hooks are attached to it now, makes of what is observed at this step."""
        with at_step(self._step):
            return self.driver.look(observation, names, state=self._state, uniform=self._uniform)

    def decide(self, observation: Any, entities: list[Row], unedited: Look) -> Decision:
        """Decide in a state.

        Args:
            observation: What is observed there.
            entities: Who is there.
            unedited: What the unedited policy makes of it.
        """
        hooks = [(name, function) for name, function in self._hooks if self._is_of_step(function)]
        edited = bool(hooks) and self._acts(observation, entities, unedited)
        look = unedited
        if edited:
            with self.driver.policy.hooks(fwd_hooks=hooks):
                look = self.look(observation, self.driver.names)
        self._previous, self._step, self._state = look.action, self._step + 1, look.state
        self._draw()
        return Decision(
            action=look.action,
            scores=look.scores[0].cpu().numpy(),
            activations={name: value[0].cpu().numpy() for name, value in look.activations.items()},
            edited=edited,
            action_changed=edited and not np.array_equal(look.action, unedited.action),
        )

    def _is_of_step(self, function: Callable[..., object]) -> bool:
        return not isinstance(function, AtSteps) or self._step in function.steps

    def _draw(self) -> None:
        """The number that decides at the coming step: it follows from the episode's seed and the step alone."""
        if not self.driver.deterministic:
            choices = self.driver.policy.choices
            n_choices = () if choices is None else (len(choices.sizes),)
            self._uniform = self._draws.random((1, *n_choices))

    def _acts(self, observation: object, entities: list[tuple[object, ...]], unedited: Look) -> bool:
        when = self.driver.when
        if when is None:
            return True
        moment = Moment(
            seed=self.seed,
            step=self._step,
            observation=observation,
            scores=unedited.scores[0].cpu().numpy(),
            action=unedited.action,
            previous_action=self._previous,
            entities=entities,
            action_names=self.driver.policy.spec.actions or self.action_names,
            measured=self.measure(entities),
        )
        return when(moment)

    def _bound(self, edit: Edit | Hook) -> Hook:
        if not isinstance(edit, Edit):
            return edit
        own = replace(edit, seed=int(np.random.SeedSequence([edit.seed, self.seed]).generate_state(1)[0]))
        return edit.site.name, own.bind(self.driver.policy.point(edit.site.name))


def _digest(edit: Edit) -> str:
    """What an edit does, in a few characters: its text does not tell one mean from another."""
    digest = hashlib.sha256(f"{edit.site!r} {edit.kind} {edit.coefficient!r} {edit.seed} {edit.mapping!r}".encode())
    for tensor in (edit.value, edit.basis):
        if tensor is not None:
            digest.update(tensor.detach().to("cpu", torch.float64).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _named(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))


def _batched(observation: object) -> Observation:
    if isinstance(observation, dict):
        return {key: np.asarray(value)[None] for key, value in observation.items()}
    return np.asarray(observation)[None]
