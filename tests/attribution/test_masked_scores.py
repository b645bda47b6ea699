"""Scores that a network masks with -inf or -1e8 are left apart by every analysis of scores: no NaN, no huge numbers."""

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.errors import MetricError

MASKS = [-torch.inf, -1e8]


class Masked(nn.Module):
    """Four actions; the observation's first three numbers above a half mask the last three of them."""

    def __init__(self, value):
        super().__init__()
        self.a, self.b, self.value = nn.Linear(5, 8), nn.Linear(8, 4), value

    def forward(self, x):
        hidden = torch.cat([torch.zeros_like(x[:, :1]), x[:, :3]], 1) > 0.5
        return self.b(self.a(x).relu()).masked_fill(hidden, self.value)


def policy_of(value):
    torch.manual_seed(0)
    return rlm.HookedPolicy(Masked(value), torch.rand(4, 5))


def states(n, seed=1):
    return torch.rand(n, 5, generator=torch.Generator().manual_seed(seed))


def finite_where_open(values, scores):
    shown = np.broadcast_to((scores > -1e7), values.shape)
    assert np.isfinite(values[shown]).all()
    return values[shown]


@pytest.mark.parametrize("value", MASKS)
def test_the_terms_of_masked_scores_add_up_and_none_is_nan(value):
    policy, obs = policy_of(value), states(16)
    scores = policy(obs).detach().numpy()
    found = rlm.attribute_actions(policy, obs)
    np.testing.assert_allclose(found.total, scores, rtol=1e-6)
    again = (found.input.sum("feature") + found.bias.sum("source")).values
    np.testing.assert_allclose(finite_where_open(again, scores), scores[scores > -1e7], atol=1e-5)
    assert (again[scores <= -1e7] <= -1e7).all()
    for term in found.data_vars.values():
        assert not np.isnan(term.values).any()
    centred = rlm.attribution.centre_actions(found)
    mean = np.where(scores > -1e7, scores, 0).sum(1) / (scores > -1e7).sum(1)
    np.testing.assert_allclose(
        finite_where_open(centred.total.values, scores), (scores - mean[:, None])[scores > -1e7], atol=1e-5
    )


def test_a_gap_to_a_masked_action_is_infinite_and_between_two_masked_ones_refused():
    policy = policy_of(-torch.inf)
    obs = torch.tensor([[0.9, 0.1, 0.1, 0.5, 0.5]])
    assert rlm.attribute_actions(policy, obs, better=0, worse=1).total.item() == np.inf
    with pytest.raises(MetricError, match="both masked"):
        rlm.attribute_actions(policy, torch.full((1, 5), 0.9), better=2, worse=1)


@pytest.mark.parametrize("value", MASKS)
@pytest.mark.parametrize("method", ["mean", "linear"])
def test_the_lens_is_fitted_to_the_scores_that_are_not_masked(value, method):
    policy, obs, reference = policy_of(value), states(12), states(200, seed=2)
    lens = rlm.attribution.action_lens(policy, obs, "b.hook_out", reference=reference, method=method)
    np.testing.assert_allclose(lens.scores.values[0], policy(obs).detach().numpy(), rtol=1e-3, atol=1e-3)
    assert lens.agreement.item() == 1
    assert lens.r2.item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("value", MASKS)
@pytest.mark.parametrize("method", ["exact_integrated_gradients", "integrated_gradients"])
def test_a_score_masked_at_both_ends_of_the_line_does_not_change(value, method):
    if method == "integrated_gradients":
        pytest.importorskip("captum")
    policy = policy_of(value)
    obs = torch.tensor([[0.9, 0.1, 0.9, 0.3, 0.2]])
    baseline = obs.clone()
    baseline[:, 3:] = 0
    found = getattr(rlm.attribution, method)(policy, obs, baseline=baseline)
    assert np.isfinite(found.total).all()
    assert found.total.values[0, 1] == found.total.values[0, 3] == 0
    np.testing.assert_allclose(found.completeness_error, 0, atol=1e-3)


@pytest.mark.parametrize("value", MASKS)
def test_masked_actions_have_no_bar_and_no_line(value):
    bars = rlm.plot.scores(np.array([1.0, value, -0.5]), names=("a", "b", "c"), taken=0)
    assert "masked" in bars.svg
    for bad in ("inf", "nan", "100000000"):
        assert bad not in bars.svg
