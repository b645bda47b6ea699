"""Curved policies have tangents with a bound, terms with a remainder, and are refused where only regions make sense."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO, SAC, TD3
from torch import nn

import rlmech as rlm
from rlmech.attribution.action_terms import attribute_actions, centre_actions
from rlmech.attribution.affine import local_affine
from rlmech.attribution.exact_gradients import exact_integrated_gradients
from rlmech.attribution.regions import region_margins
from rlmech.core.policy import HookedPolicy
from rlmech.errors import EngineError
from rlmech.nets import EgoAttentionNetwork
from tests.circuits.linear_networks import frozen_scores, wrapped
from tests.networks import mlp, scenes

ZIPS = Path(__file__).resolve().parents[3] / "shared" / "data" / "rl_zoo"
CURVES = [nn.Tanh, nn.Sigmoid, nn.GELU, lambda: nn.GELU("tanh"), nn.SiLU, nn.Softplus, nn.ELU, nn.SELU, nn.CELU,
          nn.Mish, nn.LogSigmoid, nn.Hardswish, nn.Tanhshrink]  # fmt: skip
NAMES = ["tanh", "sigmoid", "gelu", "gelu_tanh", "silu", "softplus", "elu", "selu", "celu", "mish", "log_sigmoid",
         "hardswish", "tanhshrink"]  # fmt: skip
MADE = {"ppo": (PPO, "CartPole-v1"), "a2c": (A2C, "Pendulum-v1"), "sac": (SAC, "Pendulum-v1"),
        "td3": (TD3, "Pendulum-v1")}  # fmt: skip


@pytest.fixture(scope="module", params=MADE)
def made(request):
    algorithm, env = MADE[request.param]
    options = {"buffer_size": 10} if request.param in ("sac", "td3") else {}
    policy = HookedPolicy.from_sb3(algorithm("MlpPolicy", gym.make(env), seed=0, **options))
    obs = torch.randn(5, *policy.hook_dict["hook_obs"].shape[1:], generator=torch.Generator().manual_seed(0))
    return request.param, policy, obs


def curved(activation, seed=0):
    torch.manual_seed(seed)
    obs = torch.randn(4, 5).double()
    return HookedPolicy(mlp(5, 16, 16, 3, activation=activation).double(), obs), obs


def mapped(found, obs):
    jacobian = found.jacobian.values.reshape(*found.jacobian.shape[:2], -1)
    return (
        np.einsum("bai,...bi->...ba", jacobian, obs.flatten(obs.ndim - jacobian.ndim + 2).numpy()) + found.offset.values
    )


def largest_error(policy, found, obs, radius, *, n=400, scores=None):
    """What corners, samples and an attack from the worst of them find in a box."""
    generator = torch.Generator().manual_seed(3)
    moves = torch.rand(n, *obs.shape, generator=generator).to(obs) * 2 - 1
    moves[::2] = moves[::2].sign()
    x = obs + radius * moves
    jacobian, offset = (torch.as_tensor(v.values).double() for v in (found.jacobian, found.offset))
    jacobian = jacobian.flatten(2)
    scores = scores or (lambda x: policy(x.flatten(0, 1)).unflatten(0, x.shape[:2]))

    def error(x):
        return (scores(x) - torch.einsum("bai,sbi->sba", jacobian, x.flatten(2).double()) - offset).abs()

    with torch.no_grad():
        first = error(x)
    worst = first.amax(0)
    best = first.sum(-1).argmax(0)
    y = x[best, torch.arange(len(obs))][None].clone()
    for step in (0.3, 0.2, 0.1, 0.05, 0.02):
        y = y.detach().requires_grad_()
        (slope,) = torch.autograd.grad(error(y).sum(), y)
        y = torch.maximum(torch.minimum(y + step * radius * slope.sign(), obs + radius), obs - radius)
        worst = torch.maximum(worst, error(y).detach().amax(0))
    return worst.numpy()


@pytest.mark.parametrize("activation", CURVES, ids=NAMES)
def test_the_map_is_the_tangent_and_says_so(activation):
    policy, obs = curved(activation)
    found = local_affine(policy, obs)
    expected = np.stack([torch.func.jacrev(lambda x: policy.module(x[None])[0])(row).detach() for row in obs])
    np.testing.assert_allclose(found.jacobian, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(mapped(found, obs), policy(obs).detach(), rtol=0, atol=1e-12)
    assert (found.attrs["kind"], found.attrs["exact"]) == ("tangent", 0)
    assert "margin" not in found
    affine, states = wrapped("mlp")
    assert (local_affine(affine, states).attrs["kind"], local_affine(affine, states).attrs["exact"]) == ("affine", 1)


@pytest.mark.parametrize("radius", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("activation", [*CURVES, nn.ReLU, nn.Hardtanh], ids=[*NAMES, "relu", "hardtanh"])
def test_nothing_in_the_box_is_farther_from_the_tangent_than_the_bound(activation, radius):
    policy, obs = curved(activation)
    found = local_affine(policy, obs, box=radius)
    error = largest_error(policy, found, obs, radius)
    assert (error <= found.remainder_bound.values).all()
    assert (found.rounding_bound <= 1e-11).all()
    assert found.remainder_bound.sum() <= 40 * error.sum() + 1e-10  # and it says something


def test_within_a_margin_the_bound_of_a_piecewise_linear_policy_is_rounding():
    policy, obs = wrapped("mlp")
    margins = region_margins(policy, obs).margin.values
    for row, margin in enumerate(margins):
        found = local_affine(policy, obs[row : row + 1], box=float(margin) / np.sqrt(obs[0].numel()) * 0.99)
        assert float(found.remainder_bound.max()) < 1e-11
    wide = local_affine(policy, obs, box=2.0)
    assert float(wide.remainder_bound.min()) > 1e-3
    assert (largest_error(policy, wide, obs, 2.0) <= wide.remainder_bound.values).all()


def test_the_bound_grows_with_the_box_as_its_square_where_it_is_smooth():
    policy, obs = curved(nn.Tanh)
    bounds = [local_affine(policy, obs, box=r).remainder_bound.values for r in (1e-3, 2e-3, 4e-3)]
    np.testing.assert_allclose(bounds[1] / bounds[0], 4, rtol=0.05)
    np.testing.assert_allclose(bounds[2] / bounds[1], 4, rtol=0.05)
    assert float(local_affine(policy, obs, box=0.0).remainder_bound.max()) < 1e-12


def test_features_that_are_fixed_add_nothing_and_ends_are_a_box_too():
    policy, obs = curved(nn.Tanh)
    with torch.no_grad():
        policy.module[0].weight[:, 0] = 0
    one, none = (local_affine(policy, obs, box=[r, 0.0, 0.0, 0.0, 0.0]).remainder_bound.values for r in (5.0, 0.0))
    np.testing.assert_allclose(one, none, rtol=0, atol=1e-11)
    radii = torch.tensor([0.1, 0.2, 0.0, 0.3, 0.1]).double()
    by_radii, by_ends = (local_affine(policy, obs, box=box) for box in (radii, (obs - radii, obs + radii)))
    np.testing.assert_allclose(by_radii.remainder_bound, by_ends.remainder_bound, rtol=1e-9)


def test_rows_have_their_own_bounds_whatever_their_chunk(monkeypatch):
    policy, obs = curved(nn.SiLU)
    whole = local_affine(policy, obs, box=0.2)
    monkeypatch.setattr("rlmech.attribution.remainders._ROWS_AT_ONCE", 3)
    np.testing.assert_allclose(local_affine(policy, obs, box=0.2).remainder_bound, whole.remainder_bound, rtol=1e-9)
    assert local_affine(policy, obs[:0], box=0.2).remainder_bound.shape == (0, 3)


@pytest.mark.parametrize("radius", [0.02, 0.5])
def test_with_attention_the_bound_is_of_the_policy_with_its_pattern_held(radius):
    torch.manual_seed(0)
    network = EgoAttentionNetwork(n_features=7, n_actions=3, d_model=16, embedding=(16, 16), n_heads=2)
    obs = scenes(3).double()
    policy = HookedPolicy(network.double(), obs)
    found = local_affine(policy, obs, box=radius)

    def held(x):
        return torch.stack([frozen_scores(policy, part, obs) for part in x])

    error = largest_error(policy, found, obs, radius, n=60, scores=held)
    assert (error <= found.remainder_bound.values).all()


# ---- policies of SB3


@pytest.mark.parametrize("radius", [1e-3, 0.1])
def test_the_bound_holds_in_single_precision_for_policies_of_sb3(made, radius):
    _, policy, obs = made
    found = local_affine(policy, obs, box=radius)
    assert (largest_error(policy, found, obs, radius) <= found.remainder_bound.values).all()
    assert float(found.rounding_bound.max()) < 1e-2
    assert found.attrs["kind"] == "tangent"


def test_terms_of_policies_of_sb3_and_the_remainder_give_the_score(made):
    _, policy, obs = made
    found = attribute_actions(policy, obs)
    summed = found.input.sum("feature") + found.bias.sum("source") + found.remainder
    np.testing.assert_allclose(summed, found.total, rtol=0, atol=1e-6)
    assert found.attrs["completeness_error"] == float(abs(found.remainder).max()) < 1e-5
    assert found.attrs["kind"] == "tangent"
    assert any(not source.endswith("bias") for source in found.source.values)  # what the curve adds has a name


def test_integrated_gradients_of_policies_of_sb3_add_up(made):
    _, policy, obs = made
    found = exact_integrated_gradients(policy, obs, baseline=torch.zeros_like(obs))
    assert float(abs(found.completeness_error).max()) < 1e-4 * (1 + float(abs(found.total).max()))


def test_regions_are_seen_through_a_last_squashing_and_refused_before_it(made):
    name, policy, obs = made
    if name in ("ppo", "a2c"):
        with pytest.raises(EngineError, match="tanh") as caught:
            region_margins(policy, obs)
        assert "local_affine(policy, obs, box=" in caught.value.fix
        return
    found = region_margins(policy, obs)
    assert (local_affine(policy, obs).margin.values == found.margin.values).all()
    actor = policy.module.actor
    before = nn.Sequential(actor.latent_pi, actor.mu) if name == "sac" else actor.mu[:-1]
    plain = region_margins(HookedPolicy(before, obs), obs)
    np.testing.assert_allclose(found.margin, plain.margin, rtol=1e-5)


@pytest.mark.parametrize("curve", [nn.GELU, nn.SiLU, nn.Mish])
def test_a_last_curve_that_falls_somewhere_is_not_looked_through(curve):
    policy = HookedPolicy(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), curve()), torch.rand(2, 3))
    with pytest.raises(EngineError, match="curve"):
        region_margins(policy, torch.rand(2, 3))


@pytest.mark.parametrize("name", ["a2c/Hopper-v3", "ppo/CartPole-v1", "sac/Pendulum-v1", "trpo/Swimmer-v3"])
def test_tangents_of_zoo_policies_meet_their_bounds(name):
    path = ZIPS / f"{name}_1" / f"{name.split('/')[1]}.zip"
    if not path.exists():
        pytest.skip("the zoo's zips are not here")
    policy = rlm.load(path)
    obs = torch.randn(3, *policy.hook_dict["hook_obs"].shape[1:], generator=torch.Generator().manual_seed(0))
    found = local_affine(policy, obs, box=0.05)
    assert (largest_error(policy, found, obs, 0.05, n=60) <= found.remainder_bound.values).all()


# ---- terms


def test_terms_of_a_curved_attention_policy_add_up_and_centre():
    torch.manual_seed(0)
    policy = HookedPolicy(_tanh_ego().double(), scenes(2).double())
    obs = scenes(4, seed=1).double()
    found = attribute_actions(policy, obs)
    summed = found.ov.sum(("entity", "head", "feature")) + found.skip.sum("feature") + found.bias.sum("source")
    np.testing.assert_allclose(summed + found.remainder, found.total, rtol=0, atol=1e-12)
    assert float(abs(found.remainder).max()) < 1e-12
    assert abs(centre_actions(found).total.mean("action")).max() < 1e-12


def _tanh_ego():
    network = EgoAttentionNetwork(n_features=7, n_actions=3, d_model=16, embedding=(16, 16), n_heads=2)
    network.output_layer.activation = "tanh"
    return network
