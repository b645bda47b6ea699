"""Whether the rows of a batch are independent, which every sweep relies on: it stacks rows of many interventions.

Probed, not assumed: a batch, a part of it, a permutation of it and twice the batch must score each row alike.
"""

from __future__ import annotations

from weakref import WeakSet

import torch
from torch import Tensor

from rlmech.core.engine import GraphEngine
from rlmech.core.masked import excess
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.errors import EngineError

PROBED_ROWS = 8
TOLERANCE = 1e-4
"""Largest move of a row's scores that counts as rounding, relative to the scale of those that no mask hides."""
_independent: WeakSet[GraphEngine] = WeakSet()


def refuse_unfit(policy: HookedPolicy) -> None:
    """Refuse a policy whose rows are not independent of one another and of chance, or that something is attached to.

    Raises:
        EngineError: It is in train mode with batch norm or dropout, or hooks or edits are active.
    """
    refuse_train_mode(policy)
    if policy.has_hooks:
        raise EngineError(
            "Something is attached to the policy, which this analysis would pass by.",
            given="hooks or edits that are active",
            expected="a policy with nothing attached",
            fix="call it outside the `with`; activation_patching and ablation_sweep work inside",
        )


def refuse_train_mode(policy: HookedPolicy) -> None:
    """Refuse a policy in train mode, where it has layers that mind.

    Raises:
        EngineError: It is in train mode with batch norm or dropout.
    """
    if policy.couples_rows:
        raise EngineError(
            "The network is in train mode, where batch statistics and dropout couple or randomise rows.",
            given="policy.training with dropout or batch norm",
            expected="eval mode",
            fix="policy.eval()",
        )


@torch.no_grad()
def check_rows(policy: HookedPolicy, obs: Observation) -> None:
    """Refuse a network that couples the rows of a batch.

    Args:
        policy: The policy, on the graph engine.
        obs: A batch of observations; its first rows are run.

    Raises:
        EngineError: A row's scores depend on which other rows are in the batch, or hooks are active.
    """
    refuse_unfit(policy)
    engine = policy.graph_engine
    if engine in _independent:
        return
    arrays = tuple(array[:PROBED_ROWS] for array in policy.coerce(obs, compare=False))
    n = arrays[0].shape[0]
    if n == 1:  # one row cannot tell: the probe is made of it and of noise
        arrays = tuple(_with_another(array) for array in arrays)
        n = 2
    scores = engine.forward(arrays)
    reversed_rows, part, twice = torch.arange(n).flip(0), torch.arange(n - 1), torch.arange(n).repeat(2)
    for what, rows in (("order", reversed_rows), ("number", part), ("number", twice)):
        rows = rows.to(scores.device)
        again = engine.forward(tuple(array[rows] for array in arrays))
        moved = float(excess(again, scores[rows], 1.0).max())
        if moved > TOLERANCE:
            raise EngineError(
                f"The network couples the rows of a batch: a row's scores depend on the {what} of the others.",
                given=f"scores that move by {moved:.3g} of their scale",
                expected="rows that are independent of one another, as in eval mode",
                fix="policy.eval(); statistics over the batch inside forward cannot be swept over",
            )
    _independent.add(engine)


def _with_another(array: Tensor) -> Tensor:
    other = array + 1 if array.is_floating_point() else array
    return torch.cat([array, other])
