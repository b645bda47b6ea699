"""Stitching: one policy's layer, by an affine map, into another's, and whether that still decides and drives.

    value of b at its site := W (value of a at its site) + c,   least squares on the fitting episodes

That two layers are alike says that they hold the same; that b decides with a's values says that b can use it. Beside it
stands the same with an untrained network in a's place. Cost: one least-squares fit, and the episodes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.core.hook_point import HookPoint
from rlmech.core.many_rows import parts_of, rows_of, scores_of, values_at
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.provenance import provenance
from rlmech.core.site import Site, read, write
from rlmech.episodes import compare_rollouts
from rlmech.episodes.recording import Recording
from rlmech.errors import ConfigError
from rlmech.nets.untrained import untrained
from rlmech.patching.sites import choose_sites
from rlmech.results import storable
from rlmech.similarity.policies import check_pair, shared_states
from rlmech.statistics import bootstrap_mean
from rlmech.untyped import Variables

FRONTS = ("a", "untrained", "mean")
"""What stands before b's site: a, a's shape with fresh weights, and b's mean value there."""
_RIDGE = 1e-6
"""Share of the mean variance that is added to every variance before the covariance is inverted."""


@explain_misuse
def stitch(
    a: HookedPolicy,
    b: HookedPolicy,
    states: Recording | Observation,
    *,
    site: Site | str,
    into: Site | str | None = None,
    env: gym.Env | None = None,
    seeds: Iterable[int] = (),
    clusters: Any = None,
    seed: int = 0,
) -> xr.Dataset:
    """Put what one policy has at a site into another, by an affine map, and see what that decides.

    Args:
        a: The policy whose front half is taken.
        b: The policy whose back half is kept; the same observations and actions.
        states: A recording of one of them, or observations; a quarter of the episodes fit nothing and score.
        site: Where in a.
        into: Where in b, of any width; None for the same name.
        env: An environment to drive the stitched policy in; None for no driving.
        seeds: Seeds of these episodes.
        clusters: A label for each state, say its episode, where observations are given.
        seed: Of the split, the fresh weights and the bootstrap.

    Returns:
        By `front` (`a`; `untrained`, a's shape with fresh weights and a map of its own; `mean`, b's mean value):
        `agreement` with b's own decisions, on episodes that fitted nothing, and `agreement_a` with a's, each with
        `_low`, `_high` (95 %, over episodes); `explained`, the share of the variance at b's site that the map gives.
        With an environment also what `compare_rollouts` says of b with each front: dimensions `condition` (`baseline`
        is b, then `front a` and so on) and `seed`.

    Raises:
        ConfigError: Policies that do not go together, one episode only, an observation of several arrays, or seeds
            without an environment.
        SiteError: No such site.

    Source:
        Lenc and Vedaldi 2015, arXiv 1411.5908; Bansal et al. 2021, arXiv 2106.07682.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> found = rlm.similarity.stitch(policy, policy, torch.randn(100, 4), site="1.hook_out")
        >>> float(found["agreement"].sel(front="a"))
        1.0
    """
    seeds = list(seeds)
    check_pair(a, b)
    (of_a,), (of_b,) = choose_sites(a, [site]), choose_sites(b, [site if into is None else into])
    _check(a, b, env, seeds)
    known = shared_states(a, b, states, clusters)
    labels = np.random.default_rng(seed).permutation(np.unique(known.episode))
    if len(labels) < 2:
        raise ConfigError(
            "A map is scored on episodes that it was not fitted on.",
            given="states of one episode",
            expected="2 episodes or more, 16 for an interval",
            fix="record more episodes",
        )
    held = np.isin(known.episode, labels[: max(1, len(labels) // 4)])
    fitting, testing = np.flatnonzero(~held), np.flatnonzero(held)
    target = values_at(b, known.obs, of_b).flatten(1).double()
    fronts = {"a": a, "untrained": untrained(a, seed + 1)}
    maps = {
        name: _AffineMap.fitted(front, of_a, known.rows(fitting), target[fitting]) for name, front in fronts.items()
    }
    maps["mean"] = _AffineMap(policy=a, site=of_a, weight=None, offset=target[fitting].mean(0))
    obs, episode = known.rows(testing), known.episode[testing]
    own = [scores_of(policy, obs).argmax(-1) for policy in (b, a)]
    rows: list[np.ndarray] = []
    explained: list[float] = []
    total = (target[testing] - target[fitting].mean(0)).square().sum()
    for front in FRONTS:
        with torch.no_grad(), b.hooks(fwd_hooks=front_hooks(b, of_b, maps[front])):
            done = torch.cat([b(rows_of(obs, part)) for part in parts_of(len(testing))]).argmax(-1)
        rows += [(done == other).double().cpu().numpy() for other in own]
        error = (target[testing] - maps[front](obs)).square().sum()
        explained.append(float(1 - error / total) if float(total) > 0 else float("nan"))
    found = bootstrap_mean(np.stack(rows), clusters=episode, seed=seed, shares="shares")
    data: Variables = {"explained": ("front", explained, {"units": "1"})}
    for end, part in (("", found.estimate), ("_low", found.low), ("_high", found.high)):
        data["agreement" + end] = ("front", part[0::2], {"units": "fraction"})
        data["agreement_a" + end] = ("front", part[1::2], {"units": "fraction"})
    result = xr.Dataset(data, coords={"front": list(FRONTS)})
    if env is not None:
        conditions = {f"front {name}": front_hooks(b, of_b, maps[name]) for name in FRONTS}
        driven = compare_rollouts(b, env, conditions=conditions, seeds=seeds, seed=seed, progress=False)
        result = driven.assign(result.data_vars).assign_coords(front=list(FRONTS))
    attrs = provenance(b) | {"front_policy": a.fingerprint, "site_a": str(of_a), "site_b": str(of_b), "seed": seed}
    return storable(result, attrs | {"n_fitted": len(fitting), "n_tested": len(testing), "method": "stitching"})


class _AffineMap:
    """What one policy has at a site, mapped to another's."""

    def __init__(self, *, policy: HookedPolicy, site: Site, weight: Tensor | None, offset: Tensor) -> None:
        self.policy, self.site, self.weight, self.offset = policy, site, weight, offset

    @classmethod
    def fitted(cls, policy: HookedPolicy, site: Site, obs: Any, target: Tensor) -> _AffineMap:
        x = values_at(policy, obs, site).flatten(1).double()
        mean, level = x.mean(0), target.mean(0)
        scatter = (x - mean).T @ (x - mean)
        scatter.diagonal().add_(_RIDGE * scatter.diagonal().mean() + torch.finfo(torch.float64).tiny)
        weight = torch.linalg.solve(scatter, (x - mean).T @ (target - level))
        return cls(policy=policy, site=site, weight=weight, offset=level - mean @ weight)

    def __repr__(self) -> str:
        total = 0.0 if self.weight is None else float(self.weight.sum())
        return f"front of {self.policy.fingerprint} at {self.site}, {total:.9g}, {float(self.offset.sum()):.9g}"

    def __call__(self, obs: Any) -> Tensor:
        """The mapped values, `[state number]`."""
        n = len(obs)
        if self.weight is None:
            return self.offset.expand(n, -1)
        return values_at(self.policy, obs, self.site).flatten(1).double() @ self.weight + self.offset


class _Seen(threading.local):
    """The observation of a pass in this thread."""

    value: Tensor | None = None

    def __reduce__(self) -> tuple[type[_Seen], tuple[()]]:
        return _Seen, ()


class _Observe:
    def __init__(self, seen: _Seen) -> None:
        self.seen = seen

    def __repr__(self) -> str:
        return "what is observed"

    def __call__(self, tensor: Tensor, hook: HookPoint) -> Tensor:
        self.seen.value = tensor.detach().clone()
        return tensor


class _Replace:
    def __init__(self, front: _AffineMap, site: Site, seen: _Seen) -> None:
        self.front, self.site, self.seen = front, site, seen

    def __repr__(self) -> str:
        return repr(self.front)

    def __call__(self, tensor: Tensor, hook: HookPoint) -> Tensor:
        index = self.site.index(hook)
        value = read(tensor, index)
        return write(tensor, index, self.front(self.seen.value).reshape(value.shape).to(value))


def front_hooks(b: HookedPolicy, site: Site, front: _AffineMap) -> list[tuple[str, Any]]:
    """Functions on b's hook points that put a front's values in at a site."""
    seen = _Seen()
    observed = "hook_obs_raw" if "hook_obs_raw" in b.hook_dict else "hook_obs"
    return [(observed, _Observe(seen)), (site.name, _Replace(front, site, seen))]


def _check(a: HookedPolicy, b: HookedPolicy, env: gym.Env | None, seeds: list[int]) -> None:
    inputs = [name for p in (a, b) for name, point in p.hook_dict.items() if point.kind == "observation"]
    if any(name not in ("hook_obs", "hook_obs_raw") for name in inputs):
        raise ConfigError(
            "Stitched policies read one array.",
            given=", ".join(dict.fromkeys(inputs)),
            expected="policies whose observation is one array",
            fix="compare_policies takes observations of several arrays",
        )
    if (env is None) != (not seeds):
        raise ConfigError(
            "Driving takes an environment and seeds.",
            given=f"env={'given' if env is not None else None}, {len(seeds)} seeds",
            expected="both or neither",
            fix="env=rlm.make_env(policy.spec), seeds=range(1000, 1200)",
        )
