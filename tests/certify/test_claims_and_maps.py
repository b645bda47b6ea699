"""Proved, refuted and undecided say what they mean: against samples, known answers and a fine grid."""

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.certify import Mirrored, Monotone, Move, Never, Takes, certified_map, check
from rlmech.errors import ArgumentError, MetricError, ObservationError
from rlmech.spec import FeatureSpec, PolicySpec
from tests.certify.subjects import SUBJECTS
from tests.networks import mlp

SPEC = PolicySpec(
    features=(FeatureSpec(name="gap", unit="m", low=-50, high=50), FeatureSpec(name="y", unit="m", low=-4, high=4)),
    actions=("SLOWER", "IDLE", "FASTER"),
)


def linear(*rows, bias=(0.0, 0.0, 0.0)):
    net = nn.Linear(2, 3).double()
    net.weight.data, net.bias.data = torch.tensor(rows).double(), torch.tensor(bias).double()
    return rlm.HookedPolicy(net, torch.rand(2, 2).double(), spec=SPEC)


def curved(seed=0):
    torch.manual_seed(seed)
    net = mlp(2, 10, 10, 3, activation=nn.Tanh).double()
    for parameter in net.parameters():
        parameter.data *= 2
    return rlm.HookedPolicy(net, torch.rand(2, 2).double(), spec=SPEC)


def verdict(policy, obs, **options):
    return str(check(policy, obs, **options).verdict.values[0])


def test_claims_of_a_linear_policy_are_decided_as_its_slopes_say():
    # braking gains as the gap shrinks; the side does not matter
    policy = linear([-1.0, 0.0], [0.0, 0.0], [1.0, 0.0])
    obs = torch.tensor([[-0.5, 0.1]]).double()
    near = Move(features={"gap": 10.0, "y": 1.0})
    assert verdict(policy, obs, box=near, claim=Takes("SLOWER")) == "proved"
    assert verdict(policy, obs, box=near, claim=Never("FASTER")) == "proved"
    assert verdict(policy, obs, box=near, claim=Never("SLOWER")) == "refuted"
    wide = Move(features={"gap": 30.0}, clipped=True)
    assert verdict(policy, obs, box=wide, claim=Never("FASTER")) == "refuted"
    falls = Monotone(step={"gap": -5.0}, better="SLOWER", worse="FASTER")
    rises = Monotone(step={"gap": 5.0}, better="SLOWER", worse="FASTER")
    assert verdict(policy, obs, box=near, claim=falls) == "proved"
    assert verdict(policy, obs, box=near, claim=rises) == "refuted"
    assert verdict(policy, obs, box=near, claim=Mirrored(features=["y"], better=0, worse=2, tolerance=1e-6)) == "proved"


def test_a_mirror_image_that_differs_is_refuted_by_a_state_where_it_does():
    policy = linear([-1.0, 0.3], [0.0, 0.0], [1.0, 0.0])
    obs = torch.tensor([[-0.5, 0.5]]).double()
    claim = Mirrored(features=["y"], better="SLOWER", worse="IDLE", tolerance=0.1)
    found = check(policy, obs, box=Move(features={"y": 1.9}), claim=claim)
    assert str(found.verdict.values[0]) == "refuted"
    example = torch.as_tensor(found.example.values)
    turned = example * torch.tensor([1.0, -1.0])
    gap = [float((s[0, 0] - s[0, 1]).detach()) for s in (policy(example), policy(turned))]
    assert abs(gap[0] - gap[1]) > 0.1


@pytest.mark.parametrize("seed", range(4))
def test_what_is_proved_holds_in_samples_and_what_is_refuted_fails_at_its_example(seed):
    policy = curved(seed)
    obs = torch.rand(6, 2, generator=torch.Generator().manual_seed(seed)).double() - 0.5
    radius = 0.3
    own = tuple(policy(obs).argmax(-1).tolist())
    claims = {
        "takes": Takes(own),
        "never": Never("IDLE"),
        "monotone": Monotone(step={"gap": 2.0}, better="SLOWER", worse="FASTER"),
    }
    samples = obs + radius * (torch.rand(400, 6, 2, generator=torch.Generator().manual_seed(1)).double() * 2 - 1)
    scores = policy(samples.flatten(0, 1)).detach().unflatten(0, (400, 6))
    after = policy((samples + torch.tensor([0.04, 0.0])).flatten(0, 1)).detach().unflatten(0, (400, 6))
    change = ((after - scores)[..., 0] - (after - scores)[..., 2]).numpy()
    holds = {
        "takes": (scores.argmax(-1).numpy() == np.array(own)).all(0),
        "never": (scores.argmax(-1).numpy() != 1).all(0),
        "monotone": (change >= 0).all(0),
    }
    for name, claim in claims.items():
        found = check(policy, obs, box=radius, claim=claim, n_boxes=200)
        proved, refuted = found.verdict.values == "proved", found.verdict.values == "refuted"
        assert holds[name][proved].all(), name
        assert (found.remaining.values[proved | refuted] == 0).all()
        assert ((found.remaining.values > 0) == ~(proved | refuted)).all()
        assert np.isnan(found.example.values[~refuted]).all()
        assert (proved | refuted).mean() > 0.6, name


def test_an_undecided_claim_says_what_is_left():
    policy, states = SUBJECTS["zoo ego attention"]()
    move = Move(features={"x": 30.0, "y": 30.0}, clipped=True)
    found = check(policy, states[:2], box=move, claim=Never("IDLE"), n_boxes=4)
    undecided = found.verdict.values == "undecided"
    assert (found.remaining.values[undecided] > 0).all()
    assert (found.boxes.values <= 12).all()


def test_a_map_agrees_with_a_fine_grid_and_its_changes_with_their_cells():
    policy = curved(1)
    state = torch.tensor([[0.1, 0.2]]).double()
    edges = {"y": np.linspace(-4, 4, 9), "gap": np.linspace(-50, 50, 11)}
    found = certified_map(policy, state, over=edges, n_boxes=64)
    assert found.action.dims == ("y", "gap")
    seen = np.zeros((8, 10, 3), dtype=bool)
    for row in range(8):
        for column in range(10):
            y = np.linspace(edges["y"][row], edges["y"][row + 1], 15) / 4
            gap = np.linspace(edges["gap"][column], edges["gap"][column + 1], 15) / 50
            grid = torch.as_tensor(np.stack(np.meshgrid(gap, y), -1).reshape(-1, 2))
            seen[row, column, policy(grid).argmax(-1).numpy()] = True
    state_ = found.state.values
    assert (seen.sum(-1)[state_ == 1] == 1).all()
    assert (np.take_along_axis(seen, found.action.values[..., None], 2)[..., 0]).all()
    assert (state_[seen.sum(-1) > 1] != 1).all()
    assert (state_ != 0).mean() > 0.8
    assert len(rlm.plot.certified_map(found).data) > 0


def test_a_map_of_a_vehicle_on_the_road_is_drawn_with_the_others():
    policy, states = SUBJECTS["zoo ego attention"]()
    over = {"y": [-10.0, 0.0, 10.0], "x": [10.0, 12.0, 14.0, 16.0]}
    found = certified_map(policy, states[:1], over=over, entity="vehicle_1", n_boxes=2)
    assert np.isfinite(found.entity_x.values[0])
    figure = rlm.plot.certified_map(found)
    assert figure.layout.yaxis.scaleanchor == "x"


def test_wrong_claims_and_maps_are_answered_in_words():
    policy = linear([-1.0, 0.0], [0.0, 0.0], [1.0, 0.0])
    obs = torch.tensor([[-0.5, 0.1]]).double()
    near = Move(features={"gap": 1.0})
    with pytest.raises(MetricError, match="no action"):
        check(policy, obs, box=near, claim=Takes("JUMP"))
    with pytest.raises(MetricError, match="between two actions"):
        check(policy, obs, box=near, claim=Monotone(step={"gap": 1.0}, better=0, worse=0))
    with pytest.raises(ObservationError, match="no feature 'speed'"):
        check(policy, obs, box=near, claim=Monotone(step={"speed": 1.0}, better=0, worse=1))
    with pytest.raises(ArgumentError, match="cannot be proved"):
        Mirrored(features=["y"], better=0, worse=1, tolerance=0.0)
    with pytest.raises(ArgumentError, match="is a ball"):
        check(policy, obs, box=Move(features=["gap"], norm="2"), claim=Takes(0))
    with pytest.raises(ArgumentError, match="takes a box"):
        check(policy, obs, box=near, claim=Takes(0), n_boxes=0)
    with pytest.raises(ObservationError, match="edges of its cells"):
        certified_map(policy, obs, over={"gap": [1.0, 0.0], "y": [0.0, 1.0]})
    with pytest.raises(ObservationError, match="leave a feature's range"):
        certified_map(policy, obs, over={"gap": [0.0, 60.0], "y": [0.0, 1.0]})
    with pytest.raises(ObservationError, match="of one state"):
        certified_map(policy, obs.expand(2, -1), over={"gap": [0.0, 1.0], "y": [0.0, 1.0]})
