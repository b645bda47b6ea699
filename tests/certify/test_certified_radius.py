"""certified <= true <= attacked: exact where it is known, met by no sample, and the gap closed by branch and bound."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

import rlmech as rlm
from rlmech.certify import Move, certified_radius
from rlmech.errors import ArgumentError, MetricError, ObservationError
from rlmech.spec import FeatureSpec, PolicySpec
from tests.certify.subjects import SUBJECTS
from tests.networks import mlp


def relu_network(*sizes, seed=0):
    torch.manual_seed(seed)
    net = mlp(*sizes).double()
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.bias, std=0.3)
    return rlm.HookedPolicy(net, torch.rand(2, sizes[0]).double())


def radius_by_enumeration(policy, x):
    """The least largest move that changes the action of a ReLU network of one hidden layer: a program a region."""
    first, last = policy.module[0], policy.module[2]
    w, b, v, c = (t.detach().numpy() for t in (first.weight, first.bias, last.weight, last.bias))
    chosen = int(policy(x[None]).argmax())
    x, n = x.numpy(), len(w)
    best = np.inf
    for signs in itertools.product((0.0, 1.0), repeat=n):
        gate = np.array(signs)
        sides = np.where(gate[:, None] > 0, -w, w), np.where(gate > 0, b, -b)
        jacobian, offset = v @ (gate[:, None] * w), v @ (gate * b) + c
        for other in range(len(v)):
            if other == chosen:
                continue
            lead = jacobian[chosen] - jacobian[other]
            # variables: the state and its distance, which is made least
            d = len(x)
            rows = [np.hstack([sides[0], np.zeros((n, 1))]), np.hstack([lead[None], [[0.0]]])]
            limits = [sides[1], [offset[other] - offset[chosen]]]
            rows += [np.hstack([sign * np.eye(d), -np.ones((d, 1))]) for sign in (1, -1)]
            limits += [x, -x]
            found = linprog(np.eye(d + 1)[d], np.vstack(rows), np.hstack(limits), bounds=[(None, None)] * (d + 1))
            if found.status == 0:
                best = min(best, found.fun)
    return best


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_branch_and_bound_closes_on_the_radius_that_enumeration_gives(seed):
    policy = relu_network(2, 7, 3, seed=seed)
    states = torch.randn(3, 2, generator=torch.Generator().manual_seed(seed)).double()
    found = certified_radius(policy, states, limit=20.0, n_boxes=400)
    for row in range(3):
        exact = radius_by_enumeration(policy, states[row])
        assert float(found.certified[row]) <= exact + 1e-9
        if exact > 20:
            assert float(found.certified[row]) > 19.7
            continue
        assert float(found.attacked[row]) >= exact - 1e-9
        assert float(found.certified[row]) > 0.98 * exact
        assert float(found.attacked[row]) < 1.02 * exact


def test_the_radius_of_a_linear_policy_is_known_in_each_norm():
    spec = PolicySpec(features=tuple(FeatureSpec(name=n, unit="m", low=-8, high=8) for n in "abc"), actions=("L", "R"))
    net = nn.Linear(3, 2, bias=False).double()
    net.weight.data = torch.tensor([[4.0, 2.0, 1.0], [0.0, 0.0, 0.0]]).double()
    obs = torch.tensor([[0.1, 0.1, 0.1]]).double()
    policy = rlm.HookedPolicy(net, obs, spec=spec)
    for norm, size in {"inf": 7.0, "2": np.sqrt(21), "1": 4.0}.items():
        found = certified_radius(policy, obs, move=Move(features=["a", "b", "c"], norm=norm), n_boxes=64)
        exact = 0.7 / (size / 8)
        assert found.certified.attrs["units"] == "m"
        assert 0.85 * exact < float(found.certified[0]) <= exact
        assert exact * (1 - 1e-9) <= float(found.attacked[0]) < 1.05 * exact


@pytest.mark.parametrize("name", ["zoo ego attention", "tanh PPO", "small CNN", "gates"])
def test_nothing_nearer_than_certified_changes_the_action_and_the_counterexample_does(name):
    policy, states = SUBJECTS[name]()
    states = states[:3]
    move = Move(features=["x", "y", "vx"]) if name == "zoo ego attention" else Move()
    ranged = name == "zoo ego attention"
    found = certified_radius(policy, states, move=move, limit=None if ranged else 1.0, n_boxes=6)
    certified, attacked = found.certified.values, found.attacked.values
    assert (certified <= attacked).all()
    assert (certified > 0).all()
    (reach,) = move.reach(policy, (states,))
    generator = torch.Generator().manual_seed(0)
    by = torch.as_tensor(certified).view(-1, *(1,) * (states.ndim - 1)) * reach
    for sample in range(300):
        step = torch.rand(states.shape, generator=generator).double() * 2 - 1
        moved = states.double() + by * (step.sign() if sample % 3 == 0 else step) * (1 - 1e-6)
        moved = moved.clamp(-1, 1) if ranged else moved
        moved = torch.where(reach > 0, moved, states.double())
        assert (policy(moved.to(states)).argmax(-1).numpy() == found.action.values).all()
    hit = found.counter_action.values >= 0
    if hit.any():
        example = torch.as_tensor(found.counterexample.values[hit]).to(states)
        assert (policy(example).argmax(-1).numpy() == found.counter_action.values[hit]).all()
        assert (found.counter_action.values[hit] != found.action.values[hit]).all()


def test_each_vehicle_is_asked_about_by_itself_and_absent_ones_have_no_radius():
    policy, states = SUBJECTS["zoo ego attention"]()
    states = states[:1].clone()
    states[:, 3:] = 0
    found = certified_radius(policy, states, move=Move(features=["x", "y"]), over="entity", n_boxes=0)
    assert found.certified.dims == ("batch", "entity")
    assert list(found.entity.values[:2]) == ["ego", "vehicle_1"]
    there = states[:, :, 0].numpy() >= 0.5
    assert (np.isfinite(found.certified.values) == there).all()
    alone = certified_radius(policy, states[:2], move=Move(features=["x", "y"], entities=["vehicle_1"]), n_boxes=0)
    np.testing.assert_allclose(alone.certified, found.certified.sel(entity="vehicle_1"), rtol=0.02)
    both = certified_radius(
        policy, states, move=Move(features=["x"], entities=[1]), over=("entity", "feature"), n_boxes=0
    )
    assert both.counterexample.dims == ("batch", "entity", "feature", "entity_", "feature_")
    assert np.isfinite(both.certified.sel(entity="vehicle_1", feature="x")).all() == bool(there[0, 1])


def test_lines_certify_far_more_than_intervals_and_boxes_more_than_lines():
    policy, states = SUBJECTS["zoo ego attention"]()
    options = {"move": Move(features=["x", "y"], entities=["ego"])}
    intervals, lines, boxes = (
        float(certified_radius(policy, states[:1], **how, **options).certified[0])
        for how in ({"method": "interval", "n_boxes": 0}, {"n_boxes": 0}, {"n_boxes": 24})
    )
    assert lines > 10 * intervals
    assert boxes > 1.3 * lines


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_a_linear_bound_that_fails_still_certifies_what_lies_nearer(norm):
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(mlp(3, 8, 2), torch.rand(2, 3))
    states = torch.rand(4, 3)
    far = certified_radius(policy, states, move=Move(norm=norm), limit=1e3, n_boxes=0)
    near = certified_radius(policy, states, move=Move(norm=norm), limit=far.attacked.values.max() * 1.01, n_boxes=0)
    np.testing.assert_allclose(far.certified, near.certified, rtol=0.15)
    assert (far.certified > 0).all()


def test_wrong_questions_are_answered_in_words():
    policy, states = SUBJECTS["tanh PPO"]()
    with pytest.raises(ArgumentError, match="no axis 'entity'"):
        certified_radius(policy, states, over="entity", limit=1.0)
    with pytest.raises(ArgumentError, match="has no range"):
        certified_radius(policy, states)
    with pytest.raises(ArgumentError, match="no radius"):
        certified_radius(policy, states, limit=-1.0)
    with pytest.raises(ObservationError, match="no feature 9"):
        certified_radius(policy, states, move=Move(features=[9]), limit=1.0)
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    actor = rlm.HookedPolicy(net, torch.rand(2, 3))
    object.__setattr__(actor, "output_kind", "mean_action") if actor.output_kind != "mean_action" else None
    with pytest.raises(MetricError, match="choose no action"):
        certified_radius(actor, torch.rand(2, 3), limit=1.0)
