"""The shift of a continuous action is its component along the way from the corrupt run's to the clean run's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import rlmech as rlm
from rlmech.attribution.first_order import attribution_patching
from rlmech.errors import MetricError
from rlmech.metrics.measure import Outputs, bind
from rlmech.metrics.score_metrics import action_score, action_shift
from rlmech.spec import PolicySpec
from tests.networks import mlp

CONTINUOUS = SimpleNamespace(output_kind="mean_action", spec=PolicySpec())
CLEAN = Outputs(scores=torch.tensor([[3.0, 4.0], [1.0, 1.0], [0.5, 0.5]]))
CORRUPT = Outputs(scores=torch.tensor([[0.0, 0.0], [1.0, 3.0], [0.5, 0.5]]))


def test_it_is_zero_for_the_corrupt_run_and_the_distance_for_the_clean_one():
    bound = bind(action_shift(), CONTINUOUS, clean=CLEAN, corrupt=CORRUPT)
    assert (bound.clean.tolist(), bound.corrupt.tolist()) == ([5, 2, 0], [0, 0, 0])
    assert (bound.name, bound.unit) == ("action_shift", "action")


def test_it_ignores_what_is_across_the_way_and_is_not_clipped():
    bound = bind(action_shift(), CONTINUOUS, clean=CLEAN, corrupt=CORRUPT)
    across = torch.tensor([[4.0, -3.0], [9.0, 3.0], [7.0, 7.0]])
    assert bound(across).tolist() == [0, 0, 0]  # where both runs act alike there is no way, and no shift
    assert bound(torch.tensor([[-3.0, -4.0], [6.0, 8.0]]), pair=torch.tensor([0, 0])).tolist() == [-5, 10]


def test_of_one_action_it_is_the_action_s_change_with_the_sign_of_the_way():
    clean, corrupt = Outputs(scores=torch.tensor([[1.0], [-1.0]])), Outputs(scores=torch.zeros(2, 1))
    bound = bind(action_shift(), CONTINUOUS, clean=clean, corrupt=corrupt)
    scores = torch.tensor([[0.25], [0.25]])
    assert bound(scores).tolist() == [0.25, -0.25]
    assert bind(action_score(0), CONTINUOUS, clean=clean)(scores).tolist() == [0.25, 0.25]


def test_patching_and_attribution_take_it():
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(mlp(4, 6, 2).double(), torch.rand(2, 4).double(), output_kind="mean_action")
    clean, corrupt = torch.randn(2, 20, 4).double()
    options = {"clean": clean, "corrupt": corrupt, "sites": ["1.hook_out", "hook_mean_action"]}
    exact = rlm.activation_patching(policy, **options, metric=action_shift())
    first_order = attribution_patching(policy, **options, metric=action_shift())
    torch.testing.assert_close(torch.tensor(exact["effect"].values), torch.ones(2).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.tensor(first_order["effect"].values), torch.ones(2).double(), atol=1e-12, rtol=0)


def test_with_a_single_run_it_is_the_distance_from_that_runs_action():
    bound = bind(action_shift(), CONTINUOUS, clean=CLEAN)
    assert float(bound.clean.abs().max()) == 0
    moved = CLEAN.scores + 1
    torch.testing.assert_close(bound(moved), torch.full((len(moved),), moved.shape[-1] ** 0.5, dtype=moved.dtype))


def test_discrete_actions_are_refused():
    discrete = SimpleNamespace(output_kind="q_values", spec=PolicySpec())
    with pytest.raises(MetricError, match="this policy's are discrete"):
        bind(action_shift(), discrete, clean=CLEAN, corrupt=CORRUPT)
