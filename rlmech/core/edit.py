"""Edits: frozen values that say what is done at a site of a policy.

One edit serves a single forward pass, a sweep or a whole episode. Exact: an edit sets what it names and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from jaxtyping import Shaped
from torch import Tensor

from rlmech.core.cache import ActivationCache
from rlmech.core.directions import exchange_along, orthonormal_basis
from rlmech.core.hook_point import HookPoint
from rlmech.core.observation import Observation
from rlmech.core.site import Index, Site, read, write
from rlmech.errors import EditError

EditKind = Literal["zero", "mean", "resample", "patch", "steer", "subspace", "erase", "map"]


class ValueMap(Protocol):
    """What an edit of kind `map` does to a site's value: a pure function, with a text that tells it from others."""

    def __call__(self, value: Tensor) -> Tensor:
        """The new value, of the same shape."""
        ...


class CachingPolicy(Protocol):
    """What an edit asks of a policy to learn its value."""

    def run_with_cache(self, obs: Observation, names: str) -> tuple[Tensor, ActivationCache]:
        """Scores and activations of a batch of observations."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Edit:
    """What to do at a site; made by `zero_ablation`, `patch`, `subspace_patch`, `steer` and the others.

    Attributes:
        site: Where.
        kind: What: `zero`, `mean`, `resample`, `patch`, `steer`, `subspace`, `erase` or `map`.
        value: The mean, the reference rows, the source rows or the direction, over the point's whole tensor.
        basis: Directions that span the subspace to patch, each of the selected shape; of an erasure the readout's
            normal, the direction that is taken out, and the mean.
        observations: Where the value is that of other observations, until `on` has run a policy on them.
        coefficient: Factor of a steering vector.
        seed: Seed of the rows that a resample ablation draws.
        mapping: Of kind `map`, the function that makes the new value; `rlm.features.Dictionary` makes such edits.

    Example:
        >>> import rlmech as rlm
        >>> rlm.zero_ablation(rlm.Site("attention_layer.hook_z", head=3))
        Edit(site=Site('attention_layer.hook_z', head=3), kind='zero', coefficient=1.0, seed=0)
    """

    site: Site
    kind: EditKind
    value: Shaped[Tensor, ...] | None = field(default=None, repr=False)
    basis: Shaped[Tensor, ...] | None = field(default=None, repr=False)
    observations: Observation | None = field(default=None, repr=False)
    coefficient: float = 1.0
    seed: int = 0
    mapping: ValueMap | None = field(default=None, repr=False)

    def on(self, policy: CachingPolicy) -> Edit:
        """The edit with its value, where that is of observations: what the unedited policy computes on them.

        Args:
            policy: The policy that the edit will act in.
        """
        if self.observations is None:
            return self
        with torch.no_grad():
            _, cache = policy.run_with_cache(self.observations, self.site.name)
        value = value_of_rows(self.site, self.kind, cache[self.site.name])
        return replace(self, value=value, observations=None)

    def bind(self, point: HookPoint) -> Callable[..., Tensor]:
        """The hook function of this edit on a point; draws go on from call to call.

        Raises:
            SiteError: The selection does not fit the point.
            EditError: The value does not fit the selection.
        """
        steps, site = self.site.in_time(point)
        if steps is None:
            return self._bind_sizes(point)
        return AtSteps(steps, replace(self, site=site)._bind_sizes(point))

    def _bind_sizes(self, point: HookPoint) -> Callable[..., Tensor]:
        """The hook function, bound anew where the point comes in another size: of more or fewer entities."""
        bound = {point.shape: self._bind(point)}

        def act(tensor: Tensor, hook: HookPoint) -> Tensor:
            function = bound.get(hook.shape)
            if function is None:
                function = bound[hook.shape] = self._bind(hook)
            return function(tensor, hook)

        return act

    def _bind(self, point: HookPoint) -> Callable[..., Tensor]:
        index = self.site.index(point)
        match self.kind:
            case "zero":
                return lambda tensor, hook: write(tensor, index, 0)
            case "steer":
                return self._steering(point, index)
            case "erase":
                return self._erasing(point, index)
            case "map":
                return self._mapping(index)
            case "subspace":
                self._check_value(point)
                return self._exchanging(point, index)
            case _:
                self._check_value(point)
                return self._replacing(point, index)

    def _replacing(self, point: HookPoint, index: Index) -> Callable[..., Tensor]:
        values = self.value
        assert values is not None  # noqa: S101  # checked by bind
        in_time = values.ndim == len(point.axes) + 1
        generator = torch.Generator().manual_seed(self.seed)

        def replace(tensor: Tensor, hook: HookPoint) -> Tensor:
            n = tensor.shape[0]
            value = _of_step(values, hook) if in_time else values
            if self.kind == "mean":
                new = value.expand(n, *value.shape[1:])
            elif self.kind == "resample":
                new = value[torch.randint(len(value), (n,), generator=generator)]
            elif len(value) == n:
                new = value
            else:
                raise EditError(
                    f"A patch at {hook.name!r} has another number of rows than the batch.",
                    given=f"{len(value)} source rows for a batch of {n}",
                    expected="as many source rows as the batch has, in its order",
                    fix=f"to put one row everywhere, repeat it: source.select([row] * {n})",
                )
            return write(tensor, index, read(new.to(tensor), index))

        return replace

    def _exchanging(self, point: HookPoint, index: Index) -> Callable[..., Tensor]:
        assert self.basis is not None  # noqa: S101  # subspace_patch always gives one
        basis = orthonormal_basis(self.basis, shape=self.site.block_shape(point), where=repr(self.site))
        replace = self._replacing(point, index)

        def exchange(tensor: Tensor, hook: HookPoint) -> Tensor:
            source = read(replace(tensor.clone(), hook), index)
            return write(tensor, index, exchange_along(basis, read(tensor, index), source))

        return exchange

    def _erasing(self, point: HookPoint, index: Index) -> Callable[..., Tensor]:
        assert self.basis is not None  # noqa: S101  # erase always gives one
        wanted, given = self.site.block_shape(point), tuple(self.basis.shape[1:])
        if given not in (wanted, wanted[-1:]):
            raise EditError(
                f"The readout to erase does not fit {self.site}.",
                given=f"a normal of shape {list(given)}",
                expected=f"shape {list(wanted)}, or {list(wanted[-1:])} for every position",
                fix="erase a readout that was fitted at this site",
            )
        normal, along, mean = self.basis.flatten(1)

        def erase(tensor: Tensor, hook: HookPoint) -> Tensor:
            value = read(tensor, index)
            rows = value.reshape(-1, len(normal))
            beyond = (rows - mean.to(rows)) @ normal.to(rows)
            return write(tensor, index, (rows - beyond[:, None] * along.to(rows)).reshape(value.shape))

        return erase

    def _mapping(self, index: Index) -> Callable[..., Tensor]:
        mapping = self.mapping
        assert mapping is not None  # noqa: S101  # what makes such an edit always gives one

        def change(tensor: Tensor, hook: HookPoint) -> Tensor:
            value = read(tensor, index)
            return write(tensor, index, mapping(value).to(value))

        return change

    def _steering(self, point: HookPoint, index: Index) -> Callable[..., Tensor]:
        vector, wanted = self.value, self.site.block_shape(point)
        assert vector is not None  # noqa: S101  # steer always gives one
        chosen = self.site.positions(point)
        kept = [len(chosen[axis]) if axis in chosen else point.size(axis) for axis in point.axes[1:]]
        if tuple(vector.shape) == tuple(kept[-1:]):  # a vector of the last axis: at every selected position
            kept = [1] * (len(kept) - 1) + kept[-1:]
        elif tuple(vector.shape) != wanted:
            raise EditError(
                f"The steering vector does not fit {self.site}.",
                given=f"a vector of shape {list(vector.shape)}",
                expected=f"shape {list(wanted)}, axes {' '.join(point.axes[1:])} less those at a single position, or a "
                f"vector of the last axis, shape {kept[-1:]}",
                fix="give a vector of that shape, or select the positions that it is for",
            )
        shift = vector.reshape(1, *kept) * self.coefficient

        def steer(tensor: Tensor, hook: HookPoint) -> Tensor:
            return write(tensor, index, read(tensor, index) + shift.to(tensor))

        return steer

    def _check_value(self, point: HookPoint) -> None:
        value = self.value
        if self.observations is not None:
            raise EditError(
                f"The {self.kind} value at {point.name!r} is of observations that no policy has run on yet.",
                given="an edit that holds observations",
                expected="an edit that holds activations",
                fix="edit.on(policy); policy.edited and record do that by themselves",
            )
        shape = () if value is None else tuple(value.shape[1:])
        if value is not None and value.ndim == len(point.axes) + 1 and "step" not in point.axes:
            shape = shape[1:]  # of a sequence
        if value is None or shape != tuple(size for size in point.shape[1:]):
            raise EditError(
                f"The {self.kind} value does not fit {point.name!r}: it was taken from another policy, or from other "
                "numbers of entities.",
                given=f"rows of shape {list(shape)}",
                expected=f"rows of shape {list(point.shape[1:])}, axes {' '.join(point.axes[1:])}",
                fix="take the reference or source cache from this policy, with as many entities as it is used on",
            )


def check_edits(edits: Iterable[object]) -> None:
    """Refuse what is no edit.

    Raises:
        EditError: One of them is something else.
    """
    for edit in edits:
        if not isinstance(edit, Edit):
            raise EditError(
                "That is no edit.",
                given=f"{edit!r:.80}",
                expected="an Edit, or several",
                fix="rlm.zero_ablation(site); functions go into policy.hooks(fwd_hooks=[(name, fn)])",
            )


def value_of_rows(site: Site, kind: EditKind, rows: Tensor) -> Tensor:
    """What an edit puts in, from the site's activation in a run."""
    rows = rows.detach()
    if kind in ("patch", "subspace"):
        return rows
    rows = _rows(site, rows)
    if kind == "resample":
        return rows
    if not rows.is_floating_point():
        raise EditError(
            f"There is no mean of {site.name!r}.",
            given=f"dtype {rows.dtype}",
            expected="a floating-point activation",
            fix="use resample_ablation or patch, which put values in that occur",
        )
    return rows.mean(0, keepdim=True)


def _of_step(values: Tensor, hook: HookPoint) -> Tensor:
    """What a sequence has at the step that this pass is at."""
    if hook.step is not None and hook.step < values.shape[1]:
        return values[:, hook.step]
    raise EditError(
        f"The values for {hook.name!r} are of a sequence, and there is none at this step.",
        given=f"values of {values.shape[1]} steps; "
        + ("a single pass, which is no step" if hook.step is None else f"step {hook.step}"),
        expected="a pass of policy.run_sequence, or of an episode, at one of those steps",
        fix="select the step of the values, values[:, step], or a step of the site: Site(name, step=…)",
    )


class AtSteps:
    """A hook function that acts at some steps of a sequence or an episode.

    Args:
        steps: They, from 0.
        function: What acts.
    """

    def __init__(self, steps: tuple[int, ...], function: Callable[..., Tensor]) -> None:
        self.steps, self._function = steps, function

    def __call__(self, tensor: Tensor, hook: HookPoint) -> Tensor:
        """Act, or leave the value as it is.

        Raises:
            EditError: The pass is no step of anything.
        """
        if hook.step is None:
            raise EditError(
                f"An edit of {hook.name!r} acts at a step, and this is a single pass.",
                given=f"step {', '.join(map(str, self.steps))}",
                expected="policy.run_sequence(obs), or an episode",
                fix="run a sequence, or leave the step out of the site",
            )
        return self._function(tensor, hook=hook) if hook.step in self.steps else tensor


def _rows(site: Site, value: Tensor) -> Tensor:
    if value.shape[0] == 0:
        raise EditError(
            f"The reference for {site} is empty.",
            given="0 rows",
            expected="at least one row",
            fix="run the policy with cache on some observations and give that cache",
        )
    return value
