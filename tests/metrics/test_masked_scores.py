"""What a network masks, with -inf or with a huge number, is left out of every comparison, and spoils none."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.core.masked import agree, excess, is_masked, open_actions
from rlmech.errors import EngineError, MetricError
from rlmech.metrics.measure import Outputs, bind

FILLS = [-1e8, -1e9, -1e30, torch.finfo(torch.float32).min, -torch.inf]


class Masked(nn.Module):
    """Scores of which the network itself masks some, as the observation's last features say."""

    def __init__(self, fill=-torch.inf, *, how="fill", couple=0.0):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        self.fill, self.how, self.couple = fill, how, couple

    def forward(self, x):
        scores, hidden = self.score(x), x[:, 3:] < 0.5
        scores = scores - self.couple * scores.mean(0)
        if self.how == "where":
            return torch.where(hidden, torch.full_like(scores, self.fill), scores)
        if self.how == "add":
            return scores + hidden.to(scores.dtype) * self.fill
        if self.how == "log":
            return scores + (~hidden).to(scores.dtype).log()
        return scores.masked_fill(hidden, self.fill)


def policy(fill, *, dtype=torch.float32, how="fill", couple=0.0):
    torch.manual_seed(0)
    module = Masked(fill, how=how, couple=couple).to(dtype)
    return rlm.HookedPolicy(module, states(dtype), output_kind="logits")


def states(dtype=torch.float32):
    """24 states; the third action is open in every third one, and in one more of the corrupt half."""
    x = torch.rand(24, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    x[:, 3:5] = 1
    x[:, 5] = (torch.arange(24) % 3 == 0).to(dtype)
    x[13, 5] = 1
    return x


ANALYSES = {
    "patching": lambda p, x: rlm.activation_patching(
        p, clean=x[:12], corrupt=x[12:], sites=p.sites("score.1.hook_out", over="neuron")
    ),
    "divergence": lambda p, x: rlm.activation_patching(
        p,
        clean=x[:12],
        corrupt=x[12:],
        sites=p.sites("score.1.hook_out", over="neuron"),
        metric=rlm.metrics.policy_kl(),
    ),
    "scores": lambda p, x: rlm.activation_patching(
        p, clean=x[:12], corrupt=x[12:], sites=p.sites("hook_logits", over="action")
    ),
    "flips": lambda p, x: rlm.ablation_sweep(p, x, sites=p.sites("score.1.hook_out", over="neuron")),
    "gaps": lambda p, x: rlm.ablation_sweep(
        p, x, sites=p.sites("score.1.hook_out", over="neuron"), metric=rlm.metrics.action_gap()
    ),
    "attribution": lambda p, x: rlm.attribution_patching(
        p,
        clean=x[:12],
        corrupt=x[12:],
        sites=p.sites("score.1.hook_out", over="neuron"),
        metric=rlm.metrics.policy_kl(),
    ),
}


@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize("how", ["fill", "where", "add"])
def test_every_mask_gives_the_same_results(analysis, how):
    expected = ANALYSES[analysis](policy(-1e8, how="fill"), states()).effect.values
    assert np.isfinite(expected).all()
    assert expected.any()
    fills = [fill for fill in FILLS if how != "add" or fill != -torch.inf]  # 0 * -inf is NaN
    for fill in [*fills, *(["log"] if how == "add" else [])]:
        made = policy(-torch.inf, how="log") if fill == "log" else policy(fill, how=how)
        np.testing.assert_allclose(ANALYSES[analysis](made, states()).effect.values, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fill", [-1e8, -1e30, -torch.inf])
def test_a_coupling_of_rows_is_found_behind_a_mask(fill, dtype):
    rlm.ablation_sweep(policy(fill, dtype=dtype), states(dtype), sites=["score.1.hook_out"])
    with pytest.raises(EngineError, match="couples the rows"):
        rlm.ablation_sweep(policy(fill, dtype=dtype, couple=0.5), states(dtype), sites=["score.1.hook_out"])


@pytest.mark.parametrize("fill", FILLS)
def test_a_metric_of_a_masked_action_says_so(fill):
    made, x = policy(fill), states()
    for metric in (rlm.metrics.action_score(2), rlm.metrics.action_gap(0, 2)):
        with pytest.raises(MetricError, match="of an action that is masked") as caught:
            rlm.ablation_sweep(made, x, sites=["score.1.hook_out"], metric=metric)
        assert "15 of 24 rows" in caught.value.given
    opened = x[x[:, 5] > 0.5]
    assert np.isfinite(
        rlm.ablation_sweep(made, opened, sites=["score.1.hook_out"], metric=rlm.metrics.action_gap(0, 2)).effect
    )


def bound(metric, clean, corrupt=None):
    fake = SimpleNamespace(output_kind="logits", spec=rlm.PolicySpec())
    runs = [None if scores is None else Outputs(scores=torch.tensor(scores)) for scores in (clean, corrupt)]
    return bind(metric, fake, clean=runs[0], corrupt=runs[1])


@pytest.mark.parametrize("fill", [-1e8, -torch.inf])
def test_a_gap_is_between_actions_that_both_runs_leave_open(fill):
    metric = bound(rlm.metrics.action_gap(), [[3.0, 2.0, 1.0]], [[0.0, 1.0, fill]])
    assert (metric.clean.tolist(), metric.corrupt.tolist()) == ([1.0], [-1.0])
    metric = bound(rlm.metrics.action_gap(), [[fill, 2.0, 1.0]], [[9.0, 0.0, 5.0]])
    assert (metric.clean.tolist(), metric.corrupt.tolist()) == ([1.0], [-5.0])
    for scores in ([[3.0, fill, fill]], [[fill, fill, fill]]):
        assert bound(rlm.metrics.action_gap(), scores).clean.tolist() == [0.0]


@pytest.mark.parametrize("fill", [-1e8, -torch.inf])
def test_a_divergence_is_over_actions_that_both_runs_leave_open(fill):
    metric = bound(rlm.metrics.policy_kl(), [[1.0, 2.0, fill]])
    assert metric.clean.tolist() == [0.0]
    p = torch.tensor([1.0, 2.0]).softmax(0)
    q = torch.tensor([2.0, 0.0]).softmax(0)
    for third in (fill, 7.0):
        torch.testing.assert_close(metric(torch.tensor([[2.0, 0.0, third]]))[0], (p * (p / q).log()).sum())
    assert bound(rlm.metrics.policy_kl(), [[fill, fill]]).clean.tolist() == [0.0]
    scores = torch.tensor([[2.0, 0.0, fill]], requires_grad=True)
    metric(scores).sum().backward()
    torch.testing.assert_close(scores.grad, torch.cat([q - p, torch.zeros(1)])[None])


def test_a_flip_rate_of_nan_scores_is_refused():
    with pytest.raises(MetricError, match="is NaN"):
        bound(rlm.metrics.action_flip(), [[1.0, 2.0]])(torch.tensor([[1.0, torch.nan]]))


def test_equal_infinities_agree_and_small_scores_beside_huge_ones_keep_their_tolerance():
    mask = torch.tensor([1.0, -1e8, -torch.inf, torch.nan])
    assert agree(mask, mask, tolerance=0.0, smallest_scale=1.0)
    for place, moved in ((0, 1.1), (1, -1.1e8), (2, 0.0), (3, 0.0), (0, torch.nan), (1, -torch.inf)):
        other = mask.clone()
        other[place] = moved
        assert not agree(other, mask, tolerance=1e-3, smallest_scale=1.0)
        assert not agree(mask, other, tolerance=1e-3, smallest_scale=1.0)
    assert agree(torch.tensor([-1e8 + 8]), torch.tensor([-1e8]), tolerance=1e-6, smallest_scale=1.0)
    assert excess(torch.tensor([3, 4]), torch.tensor([3, 5]), 1.0).tolist() == [0.0, 1.0]


def test_masks_of_sixteen_bits_are_the_lowest_float():
    half = torch.tensor([-1e4, torch.finfo(torch.float16).min, -torch.inf], dtype=torch.float16)
    assert is_masked(half).tolist() == [False, True, True]
    assert not is_masked(torch.tensor([-(10**9)])).any()
    assert open_actions(torch.tensor([[-torch.inf, -torch.inf]])).all()
