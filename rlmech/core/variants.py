"""Policies made from one policy: its module over several steps, or for observations of another shape.

Each is wrapped anew, so that parity is proved there too, and kept: the last used ones of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, Protocol, TypeVar

from gymnasium import Space
from torch import nn

from rlmech.core.hook_point import HookRegistry
from rlmech.core.observation import Observation, ObservationFormat, batch_of_one
from rlmech.core.other_shapes import (
    Shapes,
    flat_rows,
    flattens,
    format_for,
    other_shapes,
    row_shapes,
    space_for,
    spec_for,
)
from rlmech.core.recent import Recent
from rlmech.core.stateful import StatefulFormat
from rlmech.errors import ObservationError
from rlmech.spec import PolicySpec
from rlmech.untyped import Settings

MOST = 8
"""Lengths of sequences, and other shapes, for which a policy is kept."""


class Wrapped(Protocol):
    """What is read of a policy."""

    scored_module: nn.Module
    spec: PolicySpec
    observation_space: Space | None


P = TypeVar("P", bound=Wrapped)


class Variants(Generic[P]):
    """The policies that are made from one.

    Args:
        policy: That one.
        form: Its observation format.
        registry: What is attached to it: it acts in those of other shapes, whose points have the same names.
        entities: Keys of the observations whose first axis is one of entities.
        make: Wraps its module again, with some of its settings replaced.
    """

    def __init__(
        self,
        policy: P,
        form: ObservationFormat,
        registry: HookRegistry,
        *,
        entities: Collection[str],
        make: Callable[[Settings], P],
    ) -> None:
        self._policy, self._form, self._registry = policy, form, registry
        self._entities, self._make = entities, make
        self._sequences: Recent[tuple[int, int], P] = Recent(MOST)
        self._shaped: Recent[Shapes, P] = Recent(MOST)
        self._flattens: bool | None = None  # not tried yet

    def unrolled(self, n_steps: int, read: int) -> P:
        """The one over some steps, of a recurrent policy, that gives the scores of step `read`."""
        form = self._form
        assert isinstance(form, StatefulFormat)  # noqa: S101  # it is recurrent

        def make() -> P:
            return self._make({"_length": (n_steps, read), "_format": form.sequences(n_steps)})

        return self._sequences.get((n_steps, read), make)

    def fitting(self, obs: Any) -> P | None:
        """The one for these observations; None where their shapes are not such as a network may take besides.

        Raises:
            ObservationError: The network does not take them.
        """
        shapes = self._shapes_of(obs)
        return None if shapes is None else self._of_shapes(shapes)

    def taking(self, obs: Observation, error: ObservationError) -> tuple[P, Observation]:
        """The policy that takes observations that its format does not take as they are, and what it takes them as.

        Args:
            obs: The observations.
            error: What the format says of them.

        Raises:
            ObservationError: There is none.
        """
        rows = self.flat_rows(obs)
        if rows is not None:
            return self._policy, rows
        other = self.fitting(obs)
        if other is None:
            raise error
        return other, obs

    def flat_rows(self, obs: Observation) -> Observation | None:
        """Flat rows in the format's own shape, where the network flattens that itself; else None."""
        rows = flat_rows(self._form, obs)
        if rows is None:
            return None
        if self._flattens is None:
            self._flattens = flattens(self._policy.scored_module, self._form)
        return rows if self._flattens else None

    def is_single(self, obs: Observation) -> bool:
        """Whether this is one observation without a batch axis, of another number of entities or flat."""
        if isinstance(obs, Mapping) != self._form.takes_dict or row_shapes(self._form, obs) == self._form.observed:
            return False
        batch = batch_of_one(obs)
        return self._shapes_of(batch) is not None or flat_rows(self._form, batch) is not None

    def clear(self) -> None:
        """Forget them: they were made for another precision or device."""
        self._sequences.clear()
        self._shaped.clear()

    def _shapes_of(self, obs: Any) -> Shapes | None:
        spec = self._policy.spec
        return other_shapes(self._form, obs, entities=self._entities, named=(len(spec.entities), len(spec.features)))

    def _of_shapes(self, shapes: Shapes) -> P:
        def make() -> P:
            policy = self._policy
            n_entities = next((shape[0] for key, shape in shapes if key in self._entities or len(shape) == 2), 0)
            return self._make(
                {
                    "_format": format_for(policy.scored_module, self._form, shapes),
                    "spec": spec_for(policy.spec, n_entities),
                    "observation_space": space_for(policy.observation_space, shapes),
                    "registry": self._registry,
                }
            )

        return self._shaped.get(shapes, make)
