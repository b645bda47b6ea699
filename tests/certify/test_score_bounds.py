"""No state of a region leaves the bounds: samples, corners and attacks; what is no region is refused in words."""

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.certify import Move, score_bounds
from rlmech.core.bounds.softmaxes import mean_range, tangent_remainder, weight_range
from rlmech.errors import ArgumentError, EngineError, MetricError, ObservationError
from rlmech.spec import FeatureSpec, PolicySpec
from tests.certify.subjects import SUBJECTS, box_ends, samples
from tests.networks import mlp


def attacked(policy, low, high, value, *, n_steps=4):
    """The greatest values that signed gradient steps from several starts come to."""
    worst = None
    for start in samples(low, high, 3, seed=7):
        x = start
        for step in range(n_steps + 1):
            x = x.detach().requires_grad_()
            found = value(policy(x))
            worst = found.detach() if worst is None else torch.maximum(worst, found.detach())
            (slope,) = torch.autograd.grad(found.sum(), x)
            x = torch.minimum(torch.maximum(x + (high - low) / 2 / (step + 1) * slope.sign(), low), high)
    return worst


@pytest.mark.parametrize("radius", [1e-3, 0.1])
@pytest.mark.parametrize("name", SUBJECTS)
def test_no_sample_and_no_attack_leaves_the_bounds_on_scores_and_gaps(name, radius):
    policy, states = SUBJECTS[name]()
    low, high = box_ends(name, states, radius)
    for method in ("linear", "interval"):
        found = score_bounds(policy, states, box=(low, high), method=method)
        with torch.no_grad():
            seen = torch.stack([policy(x) for x in samples(low, high, 400)]).double().numpy()
        assert (seen >= found.low.values).all()
        assert (seen <= found.high.values).all()
        chosen = found.chosen.values
        gaps = np.take_along_axis(seen, chosen[None, :, None], 2) - seen
        assert (gaps >= found.gap_low.values).all()
        for action in range(seen.shape[2]):
            most = attacked(policy, low, high, lambda s, a=action: s[:, a])
            least = -attacked(policy, low, high, lambda s, a=action: -s[:, a])
            gap = -attacked(policy, low, high, lambda s, a=action, c=chosen: s[:, a] - s[range(len(s)), c])
            assert (most.numpy() <= found.high.values[:, action]).all()
            assert (least.numpy() >= found.low.values[:, action]).all()
            assert (gap.numpy() >= found.gap_low.values[:, action]).all()


def test_lines_are_far_tighter_than_intervals_on_the_shipped_attention_policy():
    policy, states = SUBJECTS["zoo ego attention"]()
    low, high = box_ends("zoo", states, 1e-3)
    wide = {m: score_bounds(policy, states, box=(low, high), method=m) for m in ("linear", "interval")}
    widths = {m: (found.high - found.low).mean().item() for m, found in wide.items()}
    assert widths["linear"] < widths["interval"] / 100


def test_a_linear_policy_has_exact_bounds_in_each_norm():
    torch.manual_seed(0)
    spec = PolicySpec(features=tuple(FeatureSpec(name=n, unit="m", low=-8, high=8) for n in "abc"), actions=("L", "R"))
    net = nn.Linear(3, 2).double()
    obs = torch.rand(4, 3).double() / 4
    policy = rlm.HookedPolicy(net, obs, spec=spec)
    weight = net.weight.detach()[0] - net.weight.detach()[1]
    scaled = weight / 8 * torch.tensor([1.0, 2.0, 0.0]).double()  # a metre is an eighth of what the network sees
    for norm, dual in {"inf": 1, "2": 2, "1": np.inf}.items():
        found = score_bounds(policy, obs, box=Move(features={"a": 1.0, "b": 2.0}, norm=norm), action="L")
        scores = policy(obs).detach()
        expected = scores[:, 0] - scores[:, 1] - np.linalg.norm(scaled, dual)
        np.testing.assert_allclose(found.gap_low.sel(action="R"), expected, atol=1e-11)
        assert found.attrs["region"] == "a by 1 m, b by 2 m, norm " + norm


def test_a_ball_lies_within_its_box_and_its_bounds_hold_on_the_sphere():
    policy, states = SUBJECTS["zoo ego attention"]()
    move = {"features": {"x": 0.3, "y": 0.3}, "entities": ["vehicle_1", "vehicle_2"], "clipped": True}
    box, ball = (score_bounds(policy, states, box=Move(norm=norm, **move)) for norm in ("inf", "2"))
    assert (ball.gap_low >= box.gap_low - 1e-9).all()
    assert (ball.gap_low > box.gap_low + 1e-6).any()
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        step = torch.zeros_like(states)
        direction = torch.randn(len(states), 4, generator=generator)
        step[:, 1:3, 1:3] = (0.3 / 100 * direction / direction.norm(dim=1, keepdim=True)).view(-1, 2, 2)
        step *= states[..., :1] >= 0.5
        with torch.no_grad():
            seen = policy(states + step * 0.9999).double().numpy()
        assert (seen >= ball.low.values).all()
        assert (seen <= ball.high.values).all()


def test_weights_of_a_softmax_are_least_and_greatest_at_corners_and_leave_their_tangent_by_no_more():
    generator = torch.Generator().manual_seed(0)
    for width in (0.01, 0.5, 4.0):
        at = torch.randn(20, 6, generator=generator).double()
        low, high = (at + sign * width * torch.rand(20, 6, generator=generator).double() for sign in (-1, 1))
        low[:, 5] = high[:, 5] = at[:, 5] = -torch.inf  # a hidden key
        least, most = weight_range(low, high)
        under, over = tangent_remainder(at, low, high)
        slopes = torch.func.vmap(torch.func.jacrev(lambda s: s.softmax(-1)))(at)
        corners = torch.zeros(6).double()
        for sample in range(300):
            share = torch.rand(20, 6, generator=generator).double()
            scores = torch.where(at.isinf(), at, low + (share > 0.5 if sample % 2 else share) * (high - low))
            weights = scores.softmax(-1)
            assert bool(((weights >= least - 1e-12) & (weights <= most + 1e-12)).all())
            line = at.softmax(-1) + torch.einsum("rij,rj->ri", slopes, torch.where(at.isinf(), 0.0, scores - at))
            off = weights - line
            assert bool(((off >= under - 1e-12) & (off <= over + 1e-12)).all())
            corners = torch.maximum(corners, (weights - least).amin(0))
        assert bool((weight_range(at, at)[0] - at.softmax(-1)).abs().max() < 1e-12)


def test_a_mean_by_weights_is_bounded_as_a_linear_program_says():
    scipy = pytest.importorskip("scipy.optimize")
    generator = torch.Generator().manual_seed(1)
    raw = torch.rand(5, 1, 4, generator=generator).double()
    centre = raw / raw.sum(-1, keepdim=True)
    least, most = (centre - 0.1).clamp(min=0), (centre + 0.15).clamp(max=1)
    value = torch.randn(5, 4, 2, generator=generator).double()
    low, high = mean_range((least, most), (value - 0.1, value + 0.2), torch.zeros(5, 1).double())
    for row in range(5):
        for column in range(2):
            bounds = list(zip(least[row, 0].tolist(), most[row, 0].tolist(), strict=True))
            ends = (value[row, :, column] - 0.1).numpy(), (value[row, :, column] + 0.2).numpy()
            exact = [
                scipy.linprog(sign * end, A_eq=np.ones((1, 4)), b_eq=[1], bounds=bounds).fun * sign
                for sign, end in zip((1, -1), ends, strict=True)
            ]
            np.testing.assert_allclose([low[row, 0, column], high[row, 0, column]], exact, atol=1e-9)


REGIONS = {
    "negative radius": (lambda: Move(features={"x": -1.0}), "cannot move by"),
    "unknown feature": (lambda: Move(features="z"), "no feature 'z'"),
    "unknown entity": (lambda: Move(entities=["vehicle_99"]), "no entity"),
    "presence": (lambda: Move(features="presence"), "no matter of degree"),
    "out of the range": (lambda: Move(features={"x": 500.0}), "leaves the range of the feature 'x'"),
    "a vehicle comes and goes": (lambda: {"presence": 0.6}, "is there and is not"),
    "a box of the wrong size": (lambda: [0.1, 0.2], "does not fit"),
    "not finite": (lambda: float("inf"), "not finite"),
}


@pytest.mark.parametrize("kind", REGIONS)
def test_what_is_no_region_is_refused_in_words(kind):
    policy, states = SUBJECTS["zoo ego attention"]()
    make, said = REGIONS[kind]
    with pytest.raises(ObservationError, match=said):
        score_bounds(policy, states, box=make())


def test_norms_actions_and_methods_that_do_not_exist_are_named():
    policy, states = SUBJECTS["zoo ego attention"]()
    with pytest.raises(ObservationError, match="no such norm"):
        Move(norm="3")
    with pytest.raises(MetricError, match="no action"):
        score_bounds(policy, states, box=Move(features={"x": 0.1}, clipped=True), action="JUMP")
    with pytest.raises(ArgumentError, match="no method"):
        score_bounds(policy, states, box=Move(features={"x": 0.1}, clipped=True), method="exact")


def test_an_operation_without_a_bound_is_refused_by_name():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.norm(x))

    policy = rlm.HookedPolicy(Normed(), torch.rand(2, 4))
    with pytest.raises(EngineError, match="No bound is known of 'layer_norm'"):
        score_bounds(policy, torch.rand(2, 4), box=0.1)


def test_absent_vehicles_and_presence_stay_as_they_are():
    policy, states = SUBJECTS["zoo ego attention"]()
    (reach,) = Move(features=["x", "vx"]).reach(policy, (states,))
    assert bool((reach[states[..., 0] < 0.5] == 0).all())
    assert bool((reach[..., 0] == 0).all())
    there = states[..., 0] >= 0.5
    torch.testing.assert_close(reach[..., 1][there], torch.full_like(reach[..., 1][there], 1 / 100))
    torch.testing.assert_close(reach[..., 3][there], torch.full_like(reach[..., 3][there], 1 / 20))


def test_several_states_are_bounded_as_each_alone():
    policy = rlm.HookedPolicy(mlp(4, 8, 8, 3), torch.rand(2, 4))
    obs = torch.rand(5, 4)
    together = score_bounds(policy, obs, box=0.2)
    for row in range(5):
        alone = score_bounds(policy, obs[row : row + 1], box=0.2)
        np.testing.assert_allclose(alone.gap_low[0], together.gap_low[row], rtol=1e-9, atol=1e-9)
    assert score_bounds(policy, obs[:0], box=0.2).low.shape == (0, 3)


def test_entities_kept_apart_give_the_same_bounds_as_one_walk_for_all(monkeypatch):
    policy, states = SUBJECTS["small ego attention"]()
    low, high = box_ends("", states, 0.05)
    apart = score_bounds(policy, states, box=(low, high))
    monkeypatch.setattr("rlmech.certify.score_regions.ScoreRegions._groups", lambda self: None)
    whole = score_bounds(policy, states, box=(low, high))
    np.testing.assert_allclose(apart.low, whole.low, rtol=1e-7, atol=1e-7)


def test_entities_without_weights_are_left_out_and_nothing_changes(monkeypatch):
    policy, states = SUBJECTS["zoo ego attention"]()
    low, high = box_ends("zoo", states[:2], 0.01)
    packed = score_bounds(policy, states[:2], box=(low, high))
    monkeypatch.setattr("rlmech.core.bounds.packing.Pairs.with_weight", lambda whole: None)
    whole = score_bounds(policy, states[:2], box=(low, high))
    for name in ("low", "high", "gap_low"):
        np.testing.assert_allclose(packed[name], whole[name], rtol=1e-9, atol=1e-9)
