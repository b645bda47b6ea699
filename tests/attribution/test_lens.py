"""The lens at the last layer is the policy; before it, it is the policy with the rest at its mean, or the best fit."""

import numpy as np
import pytest
import torch
from torch import nn

from rlmech.attribution.lens import action_lens
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ConfigError, EngineError, ObservationError, SiteError
from tests.circuits.linear_networks import wrapped
from tests.networks import mlp, scenes

EXACT = {"rtol": 0, "atol": 1e-10}


@pytest.fixture(scope="module")
def states():
    return torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).double()


def test_the_last_hidden_layer_chooses_what_the_policy_chooses(states):
    policy, obs = wrapped("mlp")
    found = action_lens(policy, obs, reference=states)
    last = found.isel(site=found.hook.values.tolist().index("3.hook_out"))
    np.testing.assert_allclose(last.scores, policy(obs).detach(), **EXACT)
    assert float(last.agreement) == 1
    assert float(last.r2) == pytest.approx(1)
    assert "hook_obs" in found.hook.values


def test_the_mean_lens_is_the_mean_of_the_affine_maps_behind_the_layer(states):
    policy, obs = wrapped("mlp")
    found = action_lens(policy, obs, "1.hook_out", reference=states, held_out=0.25, seed=3)
    order = np.random.default_rng(3).permutation(200)
    fitted = states[np.sort(order[50:])]
    _, cache = policy.run_with_cache(fitted)
    second, third = policy.module[2].weight, policy.module[4].weight
    gates = (cache["2.hook_out"] > 0).double()
    slope = torch.einsum("ah,bh,hk->ak", third, gates, second) / len(fitted)
    _, here = policy.run_with_cache(obs)
    centred = here["1.hook_out"] - cache["1.hook_out"].mean(0)
    expected = policy(fitted).mean(0) + centred @ slope.T
    np.testing.assert_allclose(found.scores[0], expected.detach(), **EXACT)


def test_both_lenses_are_the_policy_where_it_is_linear(states):
    torch.manual_seed(0)
    policy = HookedPolicy(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double(), states[:2])
    for method in ("mean", "linear"):
        found = action_lens(policy, states[:7], "0.hook_out", reference=states, method=method, ridge=1e-14)
        np.testing.assert_allclose(found.scores[0], policy(states[:7]).detach(), rtol=0, atol=1e-6)
        assert float(found.r2[0]) > 1 - 1e-6


def test_the_linear_lens_is_least_squares_with_few_rows_and_with_many(states):
    policy, obs = wrapped("mlp")
    for n in (8, 200):  # more numbers than rows in the layer, and fewer
        found = action_lens(policy, obs, "1.hook_out", reference=states[:n], method="linear", ridge=0.1, seed=1)
        order = np.random.default_rng(1).permutation(n)
        fitted = states[:n][np.sort(order[round(n / 4) :])]
        scores, cache = policy.run_with_cache(fitted)
        x, y = cache["1.hook_out"].detach(), scores.detach()
        mean, offset = x.mean(0), y.mean(0)
        x, y = x - mean, y - offset
        eye = torch.eye(8).double() * 0.1 * (x**2).sum() / 8
        slope = torch.linalg.solve(x.T @ x + eye, x.T @ y)
        _, here = policy.run_with_cache(obs)
        np.testing.assert_allclose(found.scores[0], (here["1.hook_out"].detach() - mean) @ slope + offset, **EXACT)


def test_a_layer_that_holds_nothing_explains_nothing(states):
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blind, self.seeing, self.head = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)
            nn.init.zeros_(self.blind.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.seeing(x) + self.blind(x))

    torch.manual_seed(0)
    policy = HookedPolicy(Blind().double(), states[:2])
    for method in ("mean", "linear"):
        found = action_lens(policy, states[:9], ["blind.hook_out", "seeing.hook_out"], reference=states, method=method)
        found = found.set_index(site="hook")
        assert float(found.r2.sel(site="blind.hook_out")) < 0.1
        assert float(found.r2.sel(site="seeing.hook_out")) > 0.999
        assert np.ptp(found.scores.sel(site="blind.hook_out").values, axis=0).max() < 1e-10


def test_attention_layers_are_read_and_what_only_steers_the_pattern_is_left_out():
    policy, obs = wrapped("ego")
    found = action_lens(policy, obs, reference=scenes(60, seed=1).double())
    hooks = found.hook.values.tolist()
    assert {"attention_layer.hook_z", "attention_layer.hook_attn_out"} <= set(hooks)
    assert "attention_layer.query_ego.hook_out" not in hooks
    assert found.action.values.tolist() == ["SLOWER", "IDLE", "FASTER"]
    with pytest.raises(SiteError, match="no direct way"):
        action_lens(policy, obs, "attention_layer.hook_q", reference=scenes(60).double())
    fitted = action_lens(policy, obs, "attention_layer.hook_q", reference=scenes(60).double(), method="linear")
    assert fitted.scores.shape == (1, 5, 3)


def test_what_makes_no_sense_is_refused(states):
    policy, obs = wrapped("mlp")
    with pytest.raises(ConfigError, match="no lens 'logit'"):
        action_lens(policy, obs, reference=states, method="logit")
    with pytest.raises(ConfigError, match="settings"):
        action_lens(policy, obs, reference=states, held_out=1.5)
    with pytest.raises(ObservationError, match="too small"):
        action_lens(policy, obs, reference=states[:3])
    tanh = HookedPolicy(mlp(4, 6, 6, 3, activation=nn.Tanh).double(), states[:2])
    with pytest.raises(EngineError, match="tanh"):
        action_lens(tanh, obs, "1.hook_out", reference=states)
    assert action_lens(tanh, obs, "1.hook_out", reference=states, method="linear").r2.shape == (1,)
