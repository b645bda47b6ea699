"""`local_affine` is the policy: J x + c gives every score of the region, and J is the gradient with patterns frozen."""

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.attribution import affine
from rlmech.attribution.affine import local_affine
from rlmech.attribution.regions import region_margins
from rlmech.core.policy import HookedPolicy
from rlmech.errors import AttentionError, CacheError, EngineError
from tests.circuits.linear_networks import ATTENTIVE, PLAIN, Dictionary, frozen_jacobian, frozen_scores, wrapped
from tests.networks import Branching, DictObservation, LiveDropout, Transformer, mlp, scenes

EXACT = {"rtol": 0, "atol": 1e-10}
EVERY = [*PLAIN, *ATTENTIVE]


def applied(found, obs: torch.Tensor) -> np.ndarray:
    jacobian = found.jacobian
    return (jacobian * obs.numpy()[:, None]).sum(jacobian.dims[2:]).values + found.offset.values


@pytest.mark.parametrize("name", EVERY)
def test_the_map_gives_back_the_scores(name):
    policy, obs = wrapped(name)
    np.testing.assert_allclose(applied(local_affine(policy, obs), obs), policy(obs).detach(), **EXACT)


@pytest.mark.parametrize("name", EVERY)
def test_the_map_gives_the_scores_of_what_lies_in_the_same_region(name):
    policy, obs = wrapped(name)
    found = local_affine(policy, obs)
    moved = obs + 1e-7 * torch.randn(obs.shape, generator=torch.Generator().manual_seed(1)).double()
    same = found.region.values == local_affine(policy, moved).region.values
    assert same.any()
    expected = frozen_scores(policy, moved, obs).detach().numpy()
    difference = applied(found, moved) - expected
    np.testing.assert_allclose(difference[same], 0, atol=1e-13)


@pytest.mark.parametrize("name", PLAIN)
def test_the_jacobian_is_that_of_jacrev(name):
    policy, obs = wrapped(name)

    def scores(row):
        out = policy.module(row[None])
        return (out[0] if isinstance(out, tuple) else out)[0]

    expected = np.stack([torch.func.jacrev(scores)(row).detach() for row in obs])
    np.testing.assert_allclose(local_affine(policy, obs).jacobian, expected, **EXACT)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_the_jacobian_is_the_gradient_with_the_pattern_held(name):
    policy, obs = wrapped(name)
    np.testing.assert_allclose(local_affine(policy, obs).jacobian, frozen_jacobian(policy, obs).detach(), **EXACT)


@pytest.mark.parametrize("name", ["mlp", "ego", "convolutional"])
def test_rows_do_not_depend_on_the_batch_they_stand_in(name, monkeypatch):
    policy, obs = wrapped(name)
    whole = local_affine(policy, obs)
    for row in range(len(obs)):
        alone = local_affine(policy, obs[row : row + 1])
        np.testing.assert_allclose(alone.jacobian[0], whole.jacobian[row], **EXACT)
        assert alone.region[0] == whole.region[row]
    monkeypatch.setattr("rlmech.attribution.affine.ROWS_AT_ONCE", 2)
    np.testing.assert_allclose(local_affine(policy, obs).jacobian, whole.jacobian, **EXACT)
    assert local_affine(policy, obs[:0]).jacobian.shape == (0, *whole.jacobian.shape[1:])


def test_entities_permuted_permute_the_map():
    policy, obs = wrapped("ego")
    order = torch.cat((torch.zeros(1, dtype=torch.long), 1 + torch.randperm(14)))
    found, moved = local_affine(policy, obs), local_affine(policy, obs[:, order])
    np.testing.assert_allclose(moved.jacobian, found.jacobian[:, :, order], **EXACT)
    np.testing.assert_allclose(moved.offset, found.offset, **EXACT)


def test_dictionaries_have_a_map_for_each_array():
    torch.manual_seed(0)
    obs = {"track": torch.randn(6, 2, 3).double(), "camera": torch.randn(6, 4).double()}
    policy = HookedPolicy(Dictionary().double(), obs)
    found = local_affine(policy, obs)
    assert found.jacobian_track.dims[:2] == ("batch", "action")
    assert found.jacobian_camera.dims[2:] == ("feature_camera",)
    total = found.offset.values.copy()
    for key, value in obs.items():
        jacobian = found[f"jacobian_{key}"]
        total += (jacobian * value.numpy()[:, None]).sum(jacobian.dims[2:]).values
    np.testing.assert_allclose(total, policy(obs).detach(), **EXACT)


def test_whole_numbers_are_observations_too():
    class Image(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = mlp(12, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.float().flatten(1) / 255)

    torch.manual_seed(0)
    obs = torch.randint(0, 255, (5, 3, 2, 2), dtype=torch.uint8)
    policy = HookedPolicy(Image(), obs)
    found = local_affine(policy, obs)
    np.testing.assert_allclose(applied(found, obs.float()), policy(obs).detach(), rtol=0, atol=1e-5)
    assert np.abs(found.jacobian.values).max() > 0


@pytest.mark.parametrize("name", ["zoo:intersection-ego-attention", "zoo:highway-dqn-mlp"])
def test_shipped_policies_are_their_maps_to_single_precision(name):
    policy = rlm.load(name)
    obs = torch.rand(20, *policy.hook_dict["hook_obs"].shape[1:], generator=torch.Generator().manual_seed(0))
    scores = policy(obs).detach()
    found = local_affine(policy, obs)
    np.testing.assert_allclose(applied(found, obs), scores, rtol=0, atol=1e-5 * float(scores.abs().max()))
    assert list(found.action.values) == list(policy.spec.actions)


@pytest.mark.parametrize(
    ("network", "obs", "named"),
    [
        (nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)), torch.randn(3, 4), "'layer_norm' in '1'"),
        (Transformer(), scenes(3), "'layer_norm'"),
        (DictObservation(), {"track": torch.randn(3, 2, 3), "camera": torch.randn(3, 4)}, "'lstm'"),
    ],
    ids=["layer_norm", "transformer", "lstm"],
)
def test_what_bends_is_refused_by_name(network, obs, named):
    policy = HookedPolicy(network.eval(), obs)
    with pytest.raises(EngineError, match=named):
        local_affine(policy, obs)


@pytest.mark.parametrize("op", ["square", "self_product", "quotient", "round", "softmax"])
def test_products_of_what_varies_and_hidden_steps_are_refused(op):
    class Bent(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bent = {
                "square": lambda: x**2,
                "self_product": lambda: x * x,
                "quotient": lambda: x / (x + 9),
                "round": lambda: x.long().float() + x,
                "softmax": lambda: x.softmax(1),
            }
            return bent[op]() + x

    policy = HookedPolicy(Bent(), torch.rand(3, 4))
    with pytest.raises(AttentionError if op == "softmax" else EngineError, match=r"bends|softmax"):
        local_affine(policy, torch.rand(3, 4))


def test_what_cannot_be_traced_is_refused_with_the_reason():
    policy = HookedPolicy(Branching(), torch.rand(3, 4))
    with pytest.raises(EngineError, match="eager"):
        local_affine(policy, torch.rand(3, 4))
    dropout = HookedPolicy(LiveDropout(0.0), torch.rand(3, 4))
    assert local_affine(dropout, torch.rand(3, 4)).sizes["batch"] == 3


def test_margins_are_computed_when_they_are_looked_at_and_only_with_the_same_weights(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    policy, obs = rlm.HookedPolicy(net, torch.rand(2, 3).double()), torch.rand(5, 3).double()
    calls = []
    compute = affine.margins_of
    monkeypatch.setattr(affine, "margins_of", lambda *given: (calls.append(1), compute(*given))[1])
    result, stale = affine.local_affine(policy, obs), affine.local_affine(policy, obs)
    assert "margin" in result
    assert not calls
    expected = region_margins(policy, obs)
    for name in ("margin", "nearest_gate", "nearest_position"):
        assert (result[name] == expected[name]).all()
    assert len(calls) == 1
    with torch.no_grad():
        net[0].weight += 1
    assert (result["margin"] == expected["margin"]).all()
    with pytest.raises(CacheError, match="weights have changed since"):
        stale["margin"].load()
