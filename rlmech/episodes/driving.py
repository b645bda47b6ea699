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
from rlmech.core.edit import Edit
from rlmech.episodes.when import Moment, When, when_of
from rlmech.errors import ConfigError

if TYPE_CHECKING:
    from rlmech.core.policy import HookedPolicy

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
    """

    scores: Tensor
    activations: Mapping[str, Tensor]
    action: Any


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
        names: Hook points whose values are kept.
    """

    policy: HookedPolicy
    edits: tuple[Edit | Hook, ...] = ()
    when: When | None = None
    names: Names = ()

    def __post_init__(self) -> None:
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
    def of(cls, policy: HookedPolicy, condition: Condition, *, names: Names = ()) -> Driver:
        """The driver of a condition, the policy being that of the baseline."""
        return cls(
            policy=condition.policy or policy,
            edits=tuple(condition.edits),
            when=when_of(condition.when),
            names=names,
        )

    def describe(self) -> dict[str, Any]:
        """What tells this driver from others, for a manifest; functions are told by their names alone."""
        return {
            "policy": {"fingerprint": self.policy.fingerprint, "output_kind": self.policy.output_kind},
            "edits": [str(edit) if isinstance(edit, Edit) else f"{edit[0]}: {_named(edit[1])}" for edit in self.edits],
            "edits_digest": [_digest(edit) if isinstance(edit, Edit) else None for edit in self.edits],
            "when": None if self.when is None else str(self.when),
            "when_told": self.when is None or self.when.told,
        }

    @property
    def unedited_names(self) -> Names:
        """Hook points whose values are kept of the unedited policy: none where edits are always at work."""
        return () if self.edits and self.when is None else self.names

    def look(self, observation: Any, names: Names) -> Look:
        """What the policy, with whatever hooks are attached to it now, makes of one observation."""
        batch = _batched(observation)
        if names is not None and not callable(names) and len(names) == 0:
            scores, activations = self.policy(batch), {}
        else:
            scores, activations = self.policy.run_with_cache(batch, names)
        action = choose_actions(scores, self.policy.output_kind, self.policy.action_space, deterministic=True)[0]
        return Look(scores, activations, action if np.ndim(action) else int(action))


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
    measure: Callable[[Sequence[tuple[Any, ...]]], Mapping[str, float]] = field(default=lambda entities: {})
    _hooks: list[Hook] = field(init=False)
    _previous: Any = None
    _step: int = 0

    def __post_init__(self) -> None:
        self._hooks = [self._bound(edit) for edit in self.driver.edits]

    def decide(self, observation: Any, vehicles: list[tuple[Any, ...]], unedited: Look) -> Decision:
        """Decide in a state.

        Args:
            observation: What is observed there.
            vehicles: Who is on the road.
            unedited: What the unedited policy makes of it.
        """
        edited = bool(self._hooks) and self._acts(observation, vehicles, unedited)
        look = unedited
        if edited:
            with self.driver.policy.hooks(fwd_hooks=self._hooks):
                look = self.driver.look(observation, self.driver.names)
        self._previous, self._step = look.action, self._step + 1
        return Decision(
            action=look.action,
            scores=look.scores[0].cpu().numpy(),
            activations={name: value[0].cpu().numpy() for name, value in look.activations.items()},
            edited=edited,
            action_changed=edited and not np.array_equal(look.action, unedited.action),
        )

    def _acts(self, observation: Any, vehicles: list[tuple[Any, ...]], unedited: Look) -> bool:
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
            vehicles=vehicles,
            action_names=self.driver.policy.spec.actions or self.action_names,
            measured=self.measure(vehicles),
        )
        return when(moment)

    def _bound(self, edit: Edit | Hook) -> Hook:
        if not isinstance(edit, Edit):
            return edit
        own = replace(edit, seed=int(np.random.SeedSequence([edit.seed, self.seed]).generate_state(1)[0]))
        return edit.site.name, own.bind(self.driver.policy.point(edit.site.name))


def _digest(edit: Edit) -> str:
    """What an edit does, in a few characters: its text does not tell one mean from another."""
    digest = hashlib.sha256(f"{edit.site!r} {edit.kind} {edit.coefficient!r} {edit.seed}".encode())
    for tensor in (edit.value, edit.basis):
        if tensor is not None:
            digest.update(tensor.detach().to("cpu", torch.float64).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _named(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))


def _batched(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: np.asarray(value)[None] for key, value in observation.items()}
    return np.asarray(observation)[None]
