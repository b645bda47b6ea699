"""Table F: two algorithms on one task: how often they do the same, and how alike their last hidden layers are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from rlmech.atlas.agents import Agent
from rlmech.atlas.sizes import Sizes
from rlmech.atlas.states import Inside, States
from rlmech.similarity import compare_policies
from rlmech.untyped import JsonObject


def pair_rows(agents: Sequence[tuple[Agent, States]], sizes: Sizes) -> list[JsonObject]:
    """A row for each pair of agents of one task, all on the same states: as many of each."""
    parts = [np.linspace(0, len(own.raw) - 1, min(sizes.shared_states, len(own.raw))).astype(int) for _, own in agents]
    raw = np.concatenate([own.raw[rows] for (_, own), rows in zip(agents, parts, strict=True)])
    idle = np.concatenate([own.idle[rows] for (_, own), rows in zip(agents, parts, strict=True)])
    episode = np.concatenate(
        [10**6 * number + own.episode[rows] for number, ((_, own), rows) in enumerate(zip(agents, parts, strict=True))]
    )
    found: list[JsonObject] = []
    for (a, _), (b, _) in combinations(agents, 2):
        last = [Inside.of(one.policy, raw[:2]).layers[-1] for one in (a, b)]
        alike = compare_policies(
            a.policy,
            b.policy,
            raw,
            sites={last[0]: last[1]},
            n_states=len(raw),
            n_untrained=sizes.n_untrained,
            clusters=episode,
        )
        other, fresh = alike.sel(compared="other"), alike.sel(compared="untrained")
        same = a.policy.predict(raw)[0] == b.policy.predict(raw)[0]
        found.append(
            {
                "task": a.task,
                "a": a.name,
                "b": b.name,
                "n_agents": len(agents),
                "n_states": len(raw),
                "agreement": float(other["agreement"]),
                "agreement_low": float(other["agreement_low"]),
                "agreement_high": float(other["agreement_high"]),
                "agreement_moving": float(same[~idle].mean()) if (~idle).any() else None,
                "chance": float(other["chance"]),
                "kappa": float(other["kappa"]),
                "agreement_untrained": float(fresh["agreement"]),
                "chance_untrained": float(fresh["chance"]),
                "cka": float(other["cka"][0]),
                "cka_low": float(other["cka_low"][0]),
                "cka_high": float(other["cka_high"][0]),
                "cka_untrained": float(fresh["cka"][0]),
            }
        )
    return found
