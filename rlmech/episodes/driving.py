"""What drives an episode: a policy, the edits that act in it, and when they do; how it decides: `deciding`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rlmech.core.edit import Edit
from rlmech.episodes.when import Moment, When, when_of
from rlmech.errors import ConfigError
from rlmech.untyped import JsonObject

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

    def describe(self) -> JsonObject:
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
    def is_told(self) -> bool:
        """Whether all that acts is told by values, which act alike in whatever order episodes are driven.

        A function of the user's own may count its calls, and so may hooks that are attached to the policy.
        """
        told = all(isinstance(edit, Edit) for edit in self.edits) and (self.when is None or self.when.told)
        return told and not self.policy.has_hooks


def hook_names(policy: HookedPolicy, names: Names) -> tuple[str, ...]:
    """Hook points whose values are kept of a policy's decisions: those asked for, and its state.

    Raises:
        SiteError: A name matches nothing.
    """
    asked = () if isinstance(names, Sequence) and len(names) == 0 else policy.sites(names)
    return tuple(dict.fromkeys((*(site.name for site in asked), *policy.state_names)))


def _digest(edit: Edit) -> str:
    """What an edit does, in a few characters: its text does not tell one mean from another."""
    digest = hashlib.sha256(f"{edit.site!r} {edit.kind} {edit.coefficient!r} {edit.seed} {edit.mapping!r}".encode())
    for tensor in (edit.value, edit.basis):
        if tensor is not None:
            digest.update(tensor.detach().to("cpu", torch.float64).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _named(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))
