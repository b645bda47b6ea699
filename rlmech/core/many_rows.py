"""Many observations, run some at a time: how many there are, some of them, the scores and what stands at a site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site, read

AT_ONCE = 4096


def n_rows(obs: Observation) -> int:
    """How many observations there are."""
    return len(next(iter(obs.values()))) if isinstance(obs, Mapping) else len(obs)


def rows_of(obs: Observation, index: Any) -> Observation:
    """Some of a batch of observations, in the order of the index."""
    if isinstance(obs, Mapping):
        return {key: value[index] for key, value in obs.items()}
    return obs[index]


def parts_of(n: int) -> list[slice]:
    """Pieces of a batch that fit into memory."""
    return [slice(start, min(n, start + AT_ONCE)) for start in range(0, n, AT_ONCE)]


def scores_of(policy: HookedPolicy, obs: Observation) -> Tensor:
    """The scores of many observations."""
    with torch.no_grad():
        return torch.cat([policy(rows_of(obs, part)) for part in parts_of(n_rows(obs))])


def values_at(policy: HookedPolicy, obs: Observation, site: Site) -> Tensor:
    """A site's values in many observations, with all axes of its hook point."""
    index = site.index(policy.point(site.name))
    with torch.no_grad():
        parts = [
            read(policy.run_with_cache(rows_of(obs, part), [site.name])[1][site.name], index).detach()
            for part in parts_of(n_rows(obs))
        ]
    return torch.cat(parts)
