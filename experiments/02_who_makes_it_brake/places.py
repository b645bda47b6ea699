"""Where in the policy the experiment looks: its attention, and what stands before and after it."""

from __future__ import annotations

from typing import Any

import rlmech as rlm

THE = "vehicle_1"  # the vehicle stands in row 1 of every removed or replaced pair


class Places:
    """Hook names of one policy."""

    def __init__(self, policy: rlm.HookedPolicy) -> None:
        self.policy, self.block = policy, next(iter(policy.attention.values()))
        self.heads = range(self.block.n_heads)
        self.embedding = policy.sites("*others_embedding.relu_1.hook_out")[0].name
        self.ego = policy.sites("*ego_embedding.relu_1.hook_out")[0].name
        self.reader = policy.sites("q_net.0.hook_out")[0].name

    def head(self, part: str, head: int, **selection: Any) -> rlm.Site:
        """One head of `q`, `k`, `v`, `mask`, `pattern` or `z`."""
        return rlm.Site(self.block.names[part], head=head, **selection)

    def vehicle(self, entity: str) -> tuple[rlm.Site, rlm.Site]:
        """A vehicle's embedding together with the mask that hides it where it is absent."""
        return rlm.Site(self.embedding, entity=entity), rlm.Site(self.block.names["mask"], key=entity)
