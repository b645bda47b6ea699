"""Observations of another shape than the example's that a network takes all the same.

    more or fewer entities    where the network runs on them, its weights being those of any number
    flat rows                 where the network flattens `[batch entity feature]` itself, so that both are one

Whether it takes them is tried, not read off its layers; and it is wrapped anew for each shape, so that parity is proved
there too. Cost: a wrap for each new number of entities, nothing for those seen before.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlmech.core.modes import evaluating
from rlmech.core.observation import Observation, ObservationFormat
from rlmech.core.parity import on_device
from rlmech.errors import ObservationError
from rlmech.spec import PolicySpec

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Shapes of single observations by key; a policy is kept for each."""
_NUMBERED = re.compile(r"(.*?)(\d+)")


def other_shapes(
    form: ObservationFormat, obs: Any, *, entities: Collection[str], named: tuple[int, int]
) -> Shapes | None:
    """The shapes of these observations, where they differ from the format's in what a network may take; else None.

    Args:
        form: The policy's format.
        obs: A batch of observations, or anything else.
        entities: Keys of the arrays whose first axis is one of entities.
        named: How many entities and features have names; flat rows of so many numbers are these.
    """
    given = row_shapes(form, obs)
    if given is None or given == form.observed:
        return None
    for key, own in form.observed.items():
        more = key in entities and len(given[key]) == len(own) and given[key][1:] == own[1:] and given[key][0] > 0
        rows = len(own) == 1 and len(given[key]) == 2 and int(np.prod(given[key])) == own[0]
        rows = rows and (0 in named or given[key] == named)
        if not (given[key] == tuple(own) or more or rows):
            return None
    return tuple(given.items())


def flat_rows(form: ObservationFormat, obs: Any) -> Observation | None:
    """Flat rows in the format's own shape, `[batch entity feature]`; None where they are none."""
    own = form.shapes.get("", ())
    if form.is_dict or form.images or len(own) < 2 or isinstance(obs, Mapping):
        return None
    shape = tuple(np.shape(obs))
    if len(shape) != 2 or shape[1] != int(np.prod(own)):
        return None
    return (obs if isinstance(obs, Tensor) else np.asarray(obs)).reshape(-1, *own)


def flattens(module: nn.Module, form: ObservationFormat) -> bool:
    """Whether a network gives the same scores, to the bit, for its observations as flat rows."""
    rows = on_device(form.samples(2), module)
    own, flat = _scores(module, rows[0]), _scores(module, rows[0].flatten(1))
    return isinstance(own, Tensor) and isinstance(flat, Tensor) and torch.equal(own, flat)


def format_for(module: nn.Module, form: ObservationFormat, shapes: Shapes) -> ObservationFormat:
    """The format of observations of other shapes.

    Raises:
        ObservationError: The network does not take them.
    """
    wanted = dict(shapes)
    other = form.resized(wanted)
    # a single entity is stretched to as many as there are wherever numbers of all are added: two are not
    probe = form.resized({key: (max(2, shape[0]), *shape[1:]) for key, shape in wanted.items()})
    for tried in (other, probe):
        found = _scores(module, tried.argument(on_device(tried.samples(2), module)))
        if not isinstance(found, Tensor):
            own = {key: list(shape) for key, shape in form.observed.items()}
            raise ObservationError(
                "The network takes observations of its own shape alone.",
                given="; ".join(
                    f"[batch {' '.join(map(str, shape))}]{f' in {key!r}' * bool(key)}" for key, shape in shapes
                )
                + f"; it says: {found}",
                expected="; ".join(
                    f"[batch {' '.join(map(str, shape))}]{f' in {key!r}' * bool(key)}" for key, shape in own.items()
                ),
                fix="give as many entities as it was trained with: the environment's own number, padded with absent "
                "ones or cut",
            )
    return other


def spec_for(spec: PolicySpec, n_entities: int) -> PolicySpec:
    """A spec with names for another number of entities: fewer of its own, or numbered on; none where they are not."""
    names = spec.entities
    if not names or len(names) == n_entities:
        return spec
    if n_entities > len(names):
        last = _NUMBERED.fullmatch(names[-1])
        if last is None:
            return replace(spec, entities=())
        more = range(int(last[2]) + 1, int(last[2]) + 1 + n_entities - len(names))
        names = (*names, *(f"{last[1]}{number}" for number in more))
    return replace(spec, entities=names[:n_entities])


def space_for(space: spaces.Space | None, shapes: Shapes) -> spaces.Space | None:
    """An observation space with other shapes; bounds of entities that it does not have are those of its last."""
    if space is None:
        return None
    wanted = dict(shapes)
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _box(part, wanted.get(key)) for key, part in space.spaces.items()})
    return _box(space, wanted.get(""))


def _box(space: spaces.Space, shape: tuple[int, ...] | None) -> spaces.Space:
    if not isinstance(space, spaces.Box) or shape is None or shape == space.shape:
        return space
    low, high = (_stretched(bound, shape) for bound in (space.low, space.high))
    return spaces.Box(low, high, dtype=space.dtype.type)  # type: ignore[union-attr]


def _stretched(bound: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if bound.size == int(np.prod(shape)):
        return bound.reshape(shape)
    return bound[np.minimum(np.arange(shape[0]), len(bound) - 1)]


def row_shapes(form: ObservationFormat, obs: Any) -> dict[str, tuple[int, ...]] | None:
    """Shapes of the single observations in a batch by key; None where its structure is another one."""
    if isinstance(obs, Mapping):
        own = {key: value for key, value in obs.items() if key not in form.states}
        given = {str(key): tuple(np.shape(value))[1:] for key, value in own.items()}
    else:
        given = {"": tuple(np.shape(obs))[1:]} if isinstance(obs, Tensor | np.ndarray | list) else {}
    return given if given.keys() == form.observed.keys() else None


def _scores(module: nn.Module, argument: Any) -> Tensor | str:
    """The scores of a module that may not take these observations, or what it says then."""
    with torch.no_grad(), evaluating(module), torch.random.fork_rng(devices=[]):
        try:
            output = module(argument)
        except Exception as error:  # whatever it raises, it does not take them
            return str(error).strip().partition("\n")[0][:200] or type(error).__name__
    scores = output[0] if isinstance(output, tuple | list) else output
    return scores if isinstance(scores, Tensor) and scores.shape[:1] == (2,) else "scores that are not one row each"
