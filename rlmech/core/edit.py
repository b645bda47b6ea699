"""Sites and edits: frozen values that say where in a policy something is changed, and to what.

One edit serves a single forward pass, a sweep or a whole episode. Exact: an edit sets what it names and nothing else.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.axes import AXES
from rlmech.core.cache import ActivationCache
from rlmech.core.directions import exchange_along, orthonormal_basis
from rlmech.core.hook_point import HookPoint
from rlmech.core.observation import Observation
from rlmech.errors import EditError, SiteError, nearest

Choice = int | str | tuple[int | str, ...]
Index = tuple[Any, ...]
Reference = Observation | Mapping[str, Tensor]
"""Observations, or a cache of a run on them."""
EditKind = Literal["zero", "mean", "resample", "patch", "steer", "subspace", "erase"]


@dataclass(frozen=True, slots=True, init=False, eq=True)
class Site:
    """A place in a policy: a hook name, and which positions along its axes.

    Args:
        name: Hook name.
        selection: By axis name, a position, the spec's name of one (`entity="vehicle_3"`), or several of them.

    Example:
        >>> import rlmech as rlm
        >>> rlm.Site("attention_layer.hook_z", head=2)
        Site('attention_layer.hook_z', head=2)
    """

    name: str
    selection: tuple[tuple[str, Choice], ...]
    _hash: int = field(compare=False, repr=False)

    def __init__(self, name: str, **selection: int | str | Iterable[int | str]) -> None:
        for axis in selection:
            if axis not in AXES or axis == "batch":
                close = nearest(axis, AXES)
                raise SiteError(
                    f"A site cannot be selected by {axis!r}.",
                    given=f"{axis}={selection[axis]!r}",
                    expected=f"an axis of the hook point, one of {', '.join(AXES[1:])}",
                    fix=f"did you mean {close[0]}=…?" if close else "policy.hook_dict[name].axes lists its axes",
                )
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "selection", tuple((axis, _choice(axis, value)) for axis, value in selection.items()))
        object.__setattr__(self, "_hash", hash((self.name, self.selection)))  # sweeps look up thousands of them

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[object, ...]:
        # made anew where it is read: strings hash otherwise in each process, and the hash is kept
        return _site_of, (self.name, self.selection)

    def __repr__(self) -> str:
        return f"Site({', '.join([repr(self.name), *(f'{axis}={choice!r}' for axis, choice in self.selection)])})"

    def positions(self, point: HookPoint) -> dict[str, tuple[int, ...]]:
        """Selected positions by axis, as numbers.

        Raises:
            SiteError: The point has no such axis, position or name.
        """
        return {axis: _positions(point, axis, choice) for axis, choice in self.selection}

    def in_time(self, point: HookPoint) -> tuple[tuple[int, ...] | None, Site]:
        """The steps that it selects, where the point itself has no axis `step`, and the site without them.

        Raises:
            SiteError: A step is a name, or counts from the end.
        """
        chosen = dict(self.selection)
        if "step" not in chosen or "step" in point.axes:
            return None, self
        given = chosen.pop("step")
        steps = given if isinstance(given, tuple) else (given,)
        numbers = tuple(step for step in steps if isinstance(step, int) and step >= 0)
        if len(numbers) != len(steps):
            raise SiteError(
                "A step is a number, counted from the beginning.",
                given=f"step={given!r}",
                expected="0 or more",
                fix="step=0 is the first",
            )
        return numbers, _site_of(self.name, tuple(chosen.items()))

    def index(self, point: HookPoint) -> Index:
        """An index into the point's tensor that keeps all its axes, for reading and for assignment."""
        chosen = self.positions(point)
        several = sum(len(positions) > 1 for positions in chosen.values()) > 1
        index: list[Any] = []
        for place, axis in enumerate(point.axes):
            positions = chosen.get(axis)
            if positions is None and not several:
                index.append(slice(None))
            elif positions is not None and len(positions) == 1 and not several:
                index.append(slice(positions[0], positions[0] + 1))
            elif positions is not None and not several:
                index.append(list(positions))
            else:
                index.append((place, positions))
        return tuple(index) if not several else _OpenMesh(tuple(index))  # type: ignore[return-value]

    def mask(self, point: HookPoint) -> Bool[Tensor, ...]:
        """Which elements of one row of the point's value are selected, in the shape of its axes without the batch."""
        chosen = torch.zeros(1, *(point.size(axis) for axis in point.axes[1:]), dtype=torch.bool)
        return write(chosen, self.index(point), 1)[0]

    def block_shape(self, point: HookPoint) -> tuple[int, ...]:
        """Sizes of what is selected, without the batch and without axes at a single position."""
        chosen = self.positions(point)
        single = {axis for axis, choice in self.selection if not isinstance(choice, tuple)}
        return tuple(
            len(chosen[axis]) if axis in chosen else point.size(axis) for axis in point.axes[1:] if axis not in single
        )


class _OpenMesh(tuple[Any, ...]):
    """Selections along several axes at once: their outer product."""

    __slots__ = ()

    def on(self, value: Tensor) -> tuple[Tensor, ...]:
        chosen = [torch.arange(value.shape[place]) if p is None else torch.tensor(p) for place, p in self]
        return torch.meshgrid(*chosen, indexing="ij")


def read(value: Tensor, index: Index) -> Tensor:
    """What an index selects."""
    return value[index.on(value)] if isinstance(index, _OpenMesh) else value[index]


def write(value: Tensor, index: Index, new: Tensor | float) -> Tensor:
    """The tensor with the selected part set, in place."""
    value[index.on(value) if isinstance(index, _OpenMesh) else index] = new
    return value


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
        kind: What: `zero`, `mean`, `resample`, `patch`, `steer`, `subspace` or `erase`.
        value: The mean, the reference rows, the source rows or the direction, over the point's whole tensor.
        basis: Directions that span the subspace to patch, each of the selected shape; of an erasure the readout's
            normal, the direction that is taken out, and the mean.
        observations: Where the value is that of other observations, until `on` has run a policy on them.
        coefficient: Factor of a steering vector.
        seed: Seed of the rows that a resample ablation draws.

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

    def on(self, policy: CachingPolicy) -> Edit:
        """The edit with its value, where that is of observations: what the unedited policy computes on them.

        Args:
            policy: The policy that the edit will act in.
        """
        if self.observations is None:
            return self
        with torch.no_grad():
            _, cache = policy.run_with_cache(self.observations, self.site.name)
        value = _of_rows(self.site, self.kind, cache[self.site.name])
        return replace(self, value=value, observations=None)

    def bind(self, point: HookPoint) -> Callable[..., Tensor]:
        """The hook function of this edit on a point; draws go on from call to call.

        Raises:
            SiteError: The selection does not fit the point.
            EditError: The value does not fit the selection.
        """
        steps, site = self.site.in_time(point)
        if steps is None:
            return self._bind(point)
        return AtSteps(steps, replace(self, site=site)._bind(point))

    def _bind(self, point: HookPoint) -> Callable[..., Tensor]:
        index = self.site.index(point)
        match self.kind:
            case "zero":
                return lambda tensor, hook: write(tensor, index, 0)
            case "steer":
                return self._steering(point, index)
            case "erase":
                return self._erasing(point, index)
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
                f"The {self.kind} value does not fit {point.name!r}: it was taken from another policy.",
                given=f"rows of shape {list(shape)}",
                expected=f"rows of shape {list(point.shape[1:])}, axes {' '.join(point.axes[1:])}",
                fix="take the reference or source cache from this policy",
            )


def check_edits(edits: Iterable[object]) -> None:
    """Refuse what is no edit.

    Raises:
        EditError: One of them is none.
    """
    for edit in edits:
        if not isinstance(edit, Edit):
            raise EditError(
                "That is no edit.",
                given=f"{edit!r:.80}",
                expected="an Edit, or several",
                fix="rlm.zero_ablation(site); functions go into policy.hooks(fwd_hooks=[(name, fn)])",
            )


@explain_misuse
def zero_ablation(site: Site | str) -> Edit:
    """Set the site to zero.

    Zero is off-distribution for most activations: prefer mean or resample ablation, and do not take one for another.

    Args:
        site: Where.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> with policy.edited(rlm.zero_ablation(rlm.Site("hook_q_values", action=0))):
        ...     bool((policy(torch.rand(3, 4))[:, 0] == 0).all())
        True
    """
    return Edit(site=_site(site), kind="zero")


@explain_misuse
def mean_ablation(site: Site | str, *, reference: Reference) -> Edit:
    """Set the site to its mean over reference states.

    Args:
        site: Where.
        reference: Observations, or a cache of them that holds the site's hook point.

    Raises:
        SiteError: The reference lacks the hook point.
        EditError: The point holds truth values, which have no mean; or the reference is neither.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> edit = rlm.mean_ablation("hook_obs", reference=torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1]]))
        >>> with policy.edited(edit):
        ...     policy.run_with_cache(torch.rand(1, 4))[1]["hook_obs"]
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """
    return _put("mean", site, reference)


@explain_misuse
def resample_ablation(site: Site | str, *, reference: Reference, seed: int = 0) -> Edit:
    """Set the site, row by row, to its value in a random reference state.

    Args:
        site: Where.
        reference: Observations, or a cache of them that holds the site's hook point.
        seed: Seed of the draws, which go on from call to call within one `policy.edited`.

    Raises:
        SiteError: The reference lacks the hook point.
        EditError: The reference is neither observations nor a cache.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> with policy.edited(rlm.resample_ablation("hook_obs", reference=torch.ones(3, 4))):
        ...     policy.run_with_cache(torch.rand(1, 4))[1]["hook_obs"]
        tensor([[1., 1., 1., 1.]])
    """
    return _put("resample", site, reference, seed=seed)


@explain_misuse
def patch(site: Site | str, *, source: Reference) -> Edit:
    """Set the site to its value in another run, row by row.

    Args:
        site: Where.
        source: The other run, with as many rows as the batch that will be patched: observations, or a cache of them.

    Raises:
        SiteError: The source lacks the hook point.
        EditError: The source is neither observations nor a cache.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> clean, corrupt = torch.rand(2, 3, 4)
        >>> with policy.edited(rlm.patch("hook_obs", source=clean)):
        ...     print(bool((policy(corrupt) == policy.module(clean)).all()))
        True
    """
    return _put("patch", site, source)


@explain_misuse
def steer(site: Site | str, vector: Tensor, coefficient: float = 1.0) -> Edit:
    """Add a vector, times a coefficient, to the site.

    Args:
        site: Where.
        vector: Of the selected shape, without the batch and without axes at a single position; or one of the
            point's last axis, which is added at every selected position.
        coefficient: Factor of the vector.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> with policy.edited(rlm.steer("hook_obs", torch.tensor([1.0, 0, 0, 0]), 2.0)):
        ...     policy.run_with_cache(torch.zeros(1, 4))[1]["hook_obs"]
        tensor([[2., 0., 0., 0.]])
    """
    return Edit(site=_site(site), kind="steer", value=torch.as_tensor(vector).detach(), coefficient=coefficient)


@explain_misuse
def subspace_patch(site: Site | str, basis: Tensor, *, source: Reference) -> Edit:
    """Set the site's component in a linear subspace to that of another run, row by row, and keep the rest.

    Exact: a full basis gives `patch`, an empty one changes nothing.

    Args:
        site: Where.
        basis: A direction of the selected shape (without the batch and without axes at a single position), or several
            along a first axis. They need not be orthogonal; those that depend on others add nothing.
        source: The other run, with as many rows as the batch that will be patched: observations, or a cache of them.

    Source:
        Geiger et al. 2024, *Finding Alignments Between Interpretable Causal Variables and Distributed Neural
        Representations*, arXiv 2303.02536, section 3 (distributed interchange intervention).

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.core.edit import subspace_patch
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> _, cache = policy.run_with_cache(torch.ones(1, 4))
        >>> with policy.edited([subspace_patch("hook_obs", torch.tensor([0.0, 1, 0, 0]), source=cache)]):
        ...     policy.run_with_cache(torch.tensor([[2.0, 0, 0, 0]]))[1]["hook_obs"]
        tensor([[2., 1., 0., 0.]])
    """
    return _put("subspace", site, source, basis=torch.as_tensor(basis).detach())


def _put(kind: EditKind, site: Site | str, run: Any, **more: Any) -> Edit:
    """An edit that puts in what a run has at the site: of observations, once a policy is there to compute it."""
    site = _site(site)
    if isinstance(run, ActivationCache) or (isinstance(run, Mapping) and site.name in run):
        return Edit(site=site, kind=kind, value=_of_rows(site, kind, run[site.name]), **more)
    if isinstance(run, Mapping | Tensor | np.ndarray | list):
        return Edit(site=site, kind=kind, observations=np.asarray(run) if isinstance(run, list) else run, **more)
    raise EditError(
        f"The {kind} edit at {site} takes its value from observations, or from a cache of them.",
        given=f"a {type(run).__name__}",
        expected="observations, one row each, or a cache",
        fix=f"policy.run_with_cache(obs, {site.name!r})[1]",
    )


def _of_rows(site: Site, kind: EditKind, rows: Tensor) -> Tensor:
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


def _site_of(name: str, selection: tuple[tuple[str, Choice], ...]) -> Site:
    return Site(name, **dict(selection))


def _site(site: Site | str) -> Site:
    return Site(site) if isinstance(site, str) else site


def _choice(axis: str, value: Any) -> Choice:
    if isinstance(value, str):
        return value
    if isinstance(value, slice):
        raise SiteError(
            "A site is selected by positions, not by a slice.",
            given=f"{axis}={value}",
            expected="a number, a name, or several of them",
            fix=f"{axis}=range(…)",
        )
    if isinstance(value, Iterable):
        several = tuple(item if isinstance(item, str) else _whole(axis, item) for item in value)
        if not several:
            raise SiteError(
                f"Nothing is selected along {axis!r}.", given="[]", expected="at least one position", fix="leave it out"
            )
        return several
    return _whole(axis, value)


def _whole(axis: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise SiteError(
            f"A position along {axis!r} is a whole number or a name.",
            given=f"{axis}={value!r}",
            expected="an int, a name, or several of them",
            fix=f"{axis}=0",
        )
    return operator.index(value)


def _positions(point: HookPoint, axis: str, choice: Choice) -> tuple[int, ...]:
    if axis not in point.axes:
        raise SiteError(
            f"{point.name!r} has no axis {axis!r}.",
            given=f"{axis}={choice!r}",
            expected=f"one of {', '.join(point.axes[1:])}",
            fix="choose a hook point with that axis; policy.hook_dict lists the axes of each",
        )
    return tuple(_position(point, axis, item) for item in (choice if isinstance(choice, tuple) else (choice,)))


def _position(point: HookPoint, axis: str, item: int | str) -> int:
    labels, size = point.labels.get(axis, ()), point.size(axis)
    if isinstance(item, str):
        if item in labels:
            return labels.index(item)
        close = nearest(item, labels)
        raise SiteError(
            f"{point.name!r} has no {axis} named {item!r}.",
            given=f"{axis}={item!r}",
            expected=f"one of {', '.join(labels)}" if labels else f"a number from 0 to {size - 1}",
            fix=f"did you mean {close[0]!r}?" if close else f"give the position, {axis}=0 … {size - 1}",
        )
    if not -size <= item < size:
        raise SiteError(
            f"{point.name!r} has no {axis} {item}.",
            given=f"{axis}={item}",
            expected=f"0 to {size - 1}",
            fix=f"choose one of its {size}",
        )
    return item % size


@explain_misuse
def erase(site: Site | str, normal: Tensor, *, mean: Tensor, along: Tensor | None = None) -> Edit:
    """Take out of the site what a linear readout reads: for every input it then reads what it reads of the mean.

        value - along (normal . (value - mean)) / (normal . along)

    With `along` = covariance times normal (`Probe.pattern`) it is the smallest change that leaves nothing of the
    readout, nor of anything that a linear readout could find in its place (LEACE); with None it is the orthogonal one.

    Args:
        site: Where.
        normal: The readout's slope, of the selected shape; or of the point's last axis, for every position.
        mean: Mean value of the site, of the same shape.
        along: Direction that the value is moved along.

    Raises:
        EditError: The direction does not change what is read, or the shapes differ.

    Source:
        Belrose et al. 2023, *LEACE: Perfect linear concept erasure in closed form*, arXiv 2306.03819, for one readout.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(3, 2), torch.rand(2, 3))
        >>> first = torch.tensor([1.0, 0, 0])
        >>> with policy.edited(rlm.erase("hook_obs", first, mean=torch.zeros(3))):
        ...     policy.run_with_cache(torch.ones(1, 3))[1]["hook_obs"]
        tensor([[0., 1., 1.]])
    """
    normal, mean = torch.as_tensor(normal).detach().double(), torch.as_tensor(mean).detach().double()
    along = normal if along is None else torch.as_tensor(along).detach().double()
    overlap = float((normal * along).sum()) if normal.shape == along.shape == mean.shape else 0.0
    if overlap == 0:
        raise EditError(
            "There is nothing to erase along that direction.",
            given=f"a normal of shape {list(normal.shape)}, a direction of {list(along.shape)}, a mean of "
            f"{list(mean.shape)}, and an overlap of {overlap:g}",
            expected="three tensors of one shape, and a direction that changes what is read",
            fix="along=probe.pattern(), or leave it out",
        )
    return Edit(site=_site(site), kind="erase", basis=torch.stack([normal, along / overlap, mean]))
