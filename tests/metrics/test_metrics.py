"""Metrics on hand-computed scores, and intervals with known answers."""

from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from rlmech.errors import MetricError
from rlmech.metrics.measure import Metric, Outputs, bind
from rlmech.metrics.score_metrics import action_flip, action_gap, action_score, policy_kl, state_value
from rlmech.spec import PolicySpec
from rlmech.statistics import bootstrap_mean, bootstrap_ratio, normalised_recovery

SPEC = PolicySpec(actions=("SLOWER", "IDLE", "FASTER"))
Q = SimpleNamespace(output_kind="q_values", spec=SPEC)
LOGITS = SimpleNamespace(output_kind="logits", spec=SPEC)
CONTINUOUS = SimpleNamespace(output_kind="mean_action", spec=PolicySpec())
CLEAN = Outputs(scores=torch.tensor([[1.0, 2.0, 4.0], [5.0, 3.0, 0.0]]))
CORRUPT = Outputs(scores=torch.tensor([[3.0, 2.0, 0.0], [7.0, 1.0, 2.0]]))


def test_action_gap_is_the_difference_of_two_named_scores():
    bound = bind(action_gap("FASTER", "SLOWER"), Q, clean=CLEAN, corrupt=CORRUPT)
    assert (bound.clean.tolist(), bound.corrupt.tolist()) == ([3, -5], [-3, -5])
    assert (bound.name, bound.unit) == ("action_gap(FASTER, SLOWER)", "return")
    assert bind(action_gap(2, 0), LOGITS, clean=CLEAN).clean.tolist() == [3, -5]
    assert bind(action_gap(2, 0), LOGITS, clean=CLEAN).unit == "nat"


def test_the_default_gap_takes_its_actions_from_the_unpatched_runs_and_keeps_them():
    bound = bind(action_gap(), Q, clean=CLEAN, corrupt=CORRUPT)
    # pair 0: FASTER (clean's choice) against SLOWER (corrupt's); pair 1: both SLOWER, so the runner-up IDLE
    assert bound.clean.tolist() == [3, 2]
    assert bound.corrupt.tolist() == [-3, 6]
    patched = torch.tensor([[0.0, 10.0, 1.0], [0.0, 10.0, 1.0], [2.0, 0.0, 9.0]])
    assert bound(patched, pair=torch.tensor([0, 1, 1])).tolist() == [1, -10, 2]


def test_the_default_gap_without_a_corrupt_run_is_against_the_runner_up():
    assert bind(action_gap(), Q, clean=CLEAN).clean.tolist() == [2, 2]
    assert bind(action_gap(), Q, clean=CLEAN).corrupt is None


@given(st.floats(-1e3, 1e3))
@settings(max_examples=20, deadline=None)
def test_a_shift_common_to_all_actions_moves_scores_but_neither_gap_flip_nor_kl(shift):
    scores = CLEAN.scores.double()
    for metric in (action_gap(), action_flip(), policy_kl(temperature=2.0)):
        bound = bind(metric, Q, clean=Outputs(scores=scores))
        torch.testing.assert_close(bound(scores + shift), bound.clean, atol=1e-9, rtol=0)
    assert bind(action_score("IDLE"), Q, clean=Outputs(scores=scores))(scores + shift)[0] == 2 + shift


def test_flip_counts_rows_whose_choice_is_not_the_clean_one():
    bound = bind(action_flip(), Q, clean=CLEAN, corrupt=CORRUPT)
    assert (bound.clean.tolist(), bound.corrupt.tolist()) == ([0, 0], [1, 0])
    assert not bound.differentiable


def test_kl_is_that_of_the_two_distributions_and_zero_for_the_clean_run():
    bound = bind(policy_kl(), LOGITS, clean=CLEAN, corrupt=CORRUPT)
    p, q = CLEAN.scores.softmax(-1), CORRUPT.scores.softmax(-1)
    torch.testing.assert_close(bound.corrupt, (p * (p / q).log()).sum(-1))
    torch.testing.assert_close(bound.clean, torch.zeros(2))
    tempered = bind(policy_kl(temperature=0.5), Q, clean=CLEAN, corrupt=CORRUPT)
    p, q = (CLEAN.scores / 0.5).softmax(-1), (CORRUPT.scores / 0.5).softmax(-1)
    torch.testing.assert_close(tempered.corrupt, (p * (p / q).log()).sum(-1))
    assert tempered.name == "policy_kl(tau=0.5)"


def test_state_value_is_the_value_head_or_the_greedy_policy_s_q():
    assert bind(state_value(), Q, clean=CLEAN).clean.tolist() == [4, 5]
    clean = Outputs(scores=CLEAN.scores, value=torch.tensor([0.5, -0.5]))
    bound = bind(state_value(), LOGITS, clean=clean)
    assert bound.clean.tolist() == [0.5, -0.5]
    assert bound(CLEAN.scores[:1], pair=torch.tensor([1]), value=torch.tensor([9.0])).tolist() == [9]


def test_a_plain_function_is_a_metric_and_sees_its_own_row_s_runs():
    seen = []

    def distance(scores, context):
        seen.append(context)
        return (scores - context.clean.scores).norm(dim=-1)

    bound = bind(distance, Q, clean=CLEAN, corrupt=CORRUPT)
    assert (bound.name, bound.clean.tolist()) == ("distance", [0, 0])
    pair = torch.tensor([1, 0, 1])
    torch.testing.assert_close(bound(CORRUPT.scores[pair], pair=pair), bound.corrupt[pair])
    assert torch.equal(seen[-1].corrupt.scores, CORRUPT.scores[pair])
    assert Metric.of(distance, name="d", unit="return").unit == "return"


def test_metrics_are_differentiable_where_they_say_so():
    scores = CLEAN.scores.clone().requires_grad_()
    for metric in (action_gap(), action_score(1), policy_kl(temperature=1.0), state_value()):
        bound = bind(metric, Q, clean=Outputs(scores=scores))  # the same tensor: the reference stays a constant
        assert bound.differentiable
        assert not bound.clean.requires_grad
        (gradient,) = torch.autograd.grad(bound(scores + torch.tensor([1.0, 0.0, 0.0])).sum(), scores)
        (constant,) = torch.autograd.grad(
            bind(metric, Q, clean=CLEAN)(scores + torch.tensor([1.0, 0.0, 0.0])).sum(), scores
        )
        assert torch.equal(gradient, constant)
        assert gradient.any()


def with_nan(scores, context):
    return scores[:, 0] / 0 * 0


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: action_gap("FASTER"), "between two actions"),
        (lambda: action_gap(1, 1), "between two actions"),
        (lambda: policy_kl(temperature=0.0), "temperature is positive"),
        (lambda: bind(policy_kl(), Q, clean=CLEAN), "no distribution to take a KL divergence of"),
        (lambda: bind(action_gap(), CONTINUOUS, clean=CLEAN), "actions are continuous"),
        (lambda: bind(action_flip(), CONTINUOUS, clean=CLEAN), "actions are continuous"),
        (lambda: bind(action_gap(), Q, clean=Outputs(scores=torch.ones(2, 1))), "has one action"),
        (lambda: bind(action_score(3), Q, clean=CLEAN), "There is no action 3"),
        (lambda: bind(state_value(), LOGITS, clean=CLEAN), "gives no state value"),
        (lambda: bind(lambda scores, context: scores, Q, clean=CLEAN), "did not give one number per row"),
        (lambda: bind(lambda scores, context: 1.0, Q, clean=CLEAN), "did not give one number per row"),
        (lambda: bind(with_nan, Q, clean=CLEAN), "'with_nan' is NaN"),
        (lambda: bind(action_gap(), Q, clean=CLEAN, corrupt=CORRUPT.rows(torch.tensor([0]))), "do not pair up"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_way_out(act, message):
    with pytest.raises(MetricError, match=message) as caught:
        act()
    assert caught.value.fix


def test_an_unknown_action_name_is_met_with_the_nearest():
    with pytest.raises(MetricError, match="did you mean 'FASTER'"):
        bind(action_gap("FASTR", "SLOWER"), Q, clean=CLEAN)


def test_intervals_cover_a_ratio_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        denominator = rng.exponential(size=40) + 0.2
        numerator = 0.5 * denominator + rng.normal(size=40)
        interval = bootstrap_ratio(numerator[None], denominator, seed=seed, n_resamples=500)
        hits += bool(interval.low[0] <= 0.5 <= interval.high[0])
    assert 0.88 <= hits / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval_and_sites_do_not_disturb_each_other():
    values = np.random.default_rng(0).normal(size=(5, 30))
    together, again, alone = bootstrap_mean(values), bootstrap_mean(values), bootstrap_mean(values[2:3])
    np.testing.assert_array_equal(together.low, again.low)
    np.testing.assert_allclose(together.low[2], alone.low[0], rtol=1e-6)  # draws are on 32 bits
    assert not np.array_equal(together.low, bootstrap_mean(values, seed=1).low)


def test_recovery_is_a_ratio_of_means_and_is_never_clipped():
    base, source = np.array([0.0, 0.0]), np.array([1.0, 3.0])
    recovery = normalised_recovery(np.array([[0.5, 1.5], [-1.0, -1.0], [4.0, 6.0]]), source=source, base=base)
    np.testing.assert_allclose(
        recovery.ratio.estimate, [0.5, -0.5, 2.5]
    )  # the mean of quotients would say 3 for the last
    np.testing.assert_allclose(recovery.per_pair[2], [4, 2])


def test_patching_everything_recovers_one_exactly_with_no_width():
    rng = np.random.default_rng(0)
    source, base = rng.normal(size=20), rng.normal(size=20)
    ratio = normalised_recovery(source[None], source=source, base=base).ratio
    assert (ratio.estimate[0], ratio.low[0], ratio.high[0]) == pytest.approx((1, 1, 1), abs=1e-12)


def test_a_pair_of_equal_runs_has_effect_zero_and_is_flagged():
    recovery = normalised_recovery(np.array([[1.0, 5.0]]), source=np.array([1.0, 9.0]), base=np.array([1.0, 1.0]))
    assert recovery.per_pair.tolist() == [[0.0, 0.5]]
    assert recovery.tiny.tolist() == [True, False]
    only = normalised_recovery(np.array([[1.0, 1.0]]), source=np.ones(2), base=np.ones(2))
    assert only.ratio.estimate.tolist() == [0.0]
    assert (only.tiny.tolist(), only.trustworthy) == ([True, True], False)


def test_denominators_around_zero_are_not_trustworthy():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=50)
    assert not normalised_recovery(noise[None], source=noise, base=np.zeros(50)).trustworthy
    assert normalised_recovery(noise[None], source=noise + 3, base=np.zeros(50)).trustworthy


def test_one_pair_bounds_nothing():
    interval = bootstrap_mean(np.array([[2.0]]))
    assert interval.estimate.tolist() == [2.0]
    assert np.isnan(interval.low).all()
    assert np.isnan(interval.high).all()


@pytest.mark.parametrize(
    ("values", "confidence"), [(np.zeros((1, 0)), 0.95), (np.array([[np.nan]]), 0.95), (np.ones((1, 3)), 95.0)]
)
def test_no_pairs_nan_and_percentages_are_refused(values, confidence):
    with pytest.raises(MetricError):
        bootstrap_mean(values, confidence=confidence)


def test_rounding_noise_over_a_denominator_of_zero_is_infinite_and_no_warning():
    recovery = normalised_recovery(np.array([[1e-17, 0, 2e-17]]), source=np.zeros(3), base=np.zeros(3))
    assert np.isposinf(recovery.ratio.estimate).all()
    assert recovery.tiny.all()
    assert not recovery.trustworthy


def test_the_change_of_a_recovery_is_the_mean_with_its_own_interval():
    generator = np.random.default_rng(0)
    patched, base = generator.normal(size=(3, 40)), generator.normal(size=40)
    recovery = normalised_recovery(patched, source=generator.normal(size=40), base=base, seed=5)
    alone = bootstrap_mean(patched - base, seed=5)  # none of the values is the same in all pairs
    for name in ("estimate", "low", "high"):
        np.testing.assert_allclose(getattr(recovery.change, name), getattr(alone, name), rtol=1e-5)


def test_pairs_of_one_cluster_are_resampled_together():
    """Ten copies of each pair say no more than one: the interval of clusters is that of the pairs themselves."""
    generator = np.random.default_rng(0)
    values, source = generator.normal(size=(2, 30)), generator.normal(size=30) + 2
    labels = np.repeat(np.arange(30), 10)
    once = bootstrap_mean(values, seed=1)
    copied = bootstrap_mean(values.repeat(10, axis=1), clusters=labels, seed=1)
    naive = bootstrap_mean(values.repeat(10, axis=1), seed=1)
    for name in ("estimate", "low", "high"):
        np.testing.assert_allclose(getattr(copied, name), getattr(once, name), rtol=1e-5)
    assert ((naive.high - naive.low) < 0.5 * (once.high - once.low)).all()
    assert copied.attrs["interval"] == "studentised bootstrap over clusters of pairs"
    recovery = normalised_recovery(
        values.repeat(10, axis=1), source=source.repeat(10), base=np.zeros(300), clusters=labels, seed=1
    )
    alone = normalised_recovery(values, source=source, base=np.zeros(30), seed=1)
    np.testing.assert_allclose(recovery.ratio.low, alone.ratio.low, rtol=1e-5)
    np.testing.assert_allclose(recovery.change.high, alone.change.high, rtol=1e-5)


def test_clusters_of_unequal_size_leave_the_estimate_as_it_is():
    values = np.random.default_rng(0).normal(size=(3, 12))
    clustered = bootstrap_mean(values, clusters=[0] * 7 + [1] * 2 + [2] * 3)
    np.testing.assert_allclose(clustered.estimate, values.mean(1), rtol=1e-12)


def test_clusters_that_do_not_label_the_pairs_are_refused():
    with pytest.raises(MetricError, match="Clusters label the pairs"):
        bootstrap_mean(np.zeros((1, 4)), clusters=[0, 1])


@pytest.mark.parametrize("metric", [action_gap(2, 0), action_gap("IDLE", "FASTER"), action_gap()])
def test_the_weights_of_a_linear_metric_give_what_it_measures(metric):
    bound = bind(metric, Q, clean=CLEAN, corrupt=CORRUPT)
    scores = torch.tensor([[0.5, -1.0, 2.0], [3.0, 0.25, -4.0]])
    torch.testing.assert_close((scores * bound.weights).sum(-1), bound(scores))


def test_a_metric_of_masked_scores_has_no_weights():
    masked = Outputs(scores=torch.tensor([[1.0, -1e8, 4.0], [5.0, -1e8, 0.0]]))
    assert bind(action_gap(2, 0), Q, clean=masked, corrupt=masked).weights is None
    assert bind(policy_kl(), LOGITS, clean=CLEAN, corrupt=CORRUPT).weights is None
