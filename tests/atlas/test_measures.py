"""The numbers of the atlas keep their laws, and a network whose needed units are known is read right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.atlas.measures import rank_correlation, split_half

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_an_orthogonal_matrix_has_its_full_effective_rank(n):
    orthogonal = np.linalg.qr(RNG.standard_normal((n, n)))[0]
    assert rlm.atlas.effective_rank(orthogonal) == pytest.approx(n)


def test_a_product_of_two_vectors_has_effective_rank_one_at_any_scale():
    outer = np.outer(RNG.standard_normal(5), RNG.standard_normal(7))
    assert rlm.atlas.effective_rank(outer) == pytest.approx(1)
    assert rlm.atlas.effective_rank(1e-6 * outer) == pytest.approx(1)
    assert rlm.atlas.effective_rank(np.zeros((3, 3))) == 0


def test_a_product_of_gaussian_matrices_is_limited_by_the_narrowest():
    wide, narrow = rlm.atlas.gaussian_rank((64, 64)), rlm.atlas.gaussian_rank((64, 64), (64, 3))
    assert 40 < wide < 64
    assert 2 < narrow < 3
    with pytest.raises(rlm.RlmechError, match="no product"):
        rlm.atlas.gaussian_rank((3, 4), (3, 4))


def test_the_participation_ratio_counts_independent_numbers_and_ignores_shifts():
    values = RNG.standard_normal((50, 4))
    values = values - values.mean(0)
    values = np.linalg.qr(values)[0]
    assert rlm.atlas.participation_ratio(values) == pytest.approx(4)
    assert rlm.atlas.participation_ratio(values + 100) == pytest.approx(4, rel=1e-6)
    assert rlm.atlas.participation_ratio(np.outer(RNG.standard_normal(9), [1.0, 2.0])) == pytest.approx(1)
    assert rlm.atlas.participation_ratio(np.ones((5, 3))) == 0


def needing_two() -> rlm.HookedPolicy:
    """Six ReLU units; the action is the larger of two of them, the others decide nothing."""
    first, last = nn.Linear(2, 6), nn.Linear(6, 2)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, 0], [0, -1], [1, -1]]))
        first.bias.zero_()
        last.weight.zero_()
        last.bias.zero_()
        last.weight[0, 0] = last.weight[1, 1] = 1.0
    return rlm.HookedPolicy(nn.Sequential(first, nn.ReLU(), last), torch.rand(2, 2))


def test_the_smallest_set_is_that_of_the_units_that_decide():
    policy, obs = needing_two(), torch.rand(200, 2)
    cache = policy.run_with_cache(obs)[1]
    units = policy.sites("1.hook_out", over="neuron")
    keep = {"reference": cache, "share": 0.95}
    assert rlm.atlas.smallest_keeping(policy, obs, ranked=units, **keep) == 2
    assert rlm.atlas.smallest_keeping(policy, obs, ranked=[*units[2:], *units[:2]], **keep) == 6
    assert rlm.atlas.smallest_keeping(policy, obs, ranked=units, reference=cache, share=0.3) == 0


def test_the_way_to_random_is_none_of_it_for_the_agent_and_all_of_it_for_random():
    agent, random = RNG.normal(100, 5, 12), RNG.normal(20, 5, 12)
    for returns, share in ((agent, 0.0), (random, 1.0), ((agent + random) / 2, 0.5)):
        found = rlm.atlas.share_of_way(returns, agent=agent, random=random)
        assert found.estimate[0] == pytest.approx(share)
        assert found.low[0] - 1e-12 <= share <= found.high[0] + 1e-12  # an interval without width has its rounding


def test_what_does_not_vary_has_no_rank_correlation():
    assert np.isnan(rank_correlation(np.ones(5), np.arange(5.0)))
    assert rank_correlation(np.arange(5.0), np.arange(5.0) ** 3) == pytest.approx(1)
    assert split_half(np.tile(np.arange(6.0)[:, None], 4)) == pytest.approx(1)
