"""Action masks are held by whatever takes slopes; whole numbers that are looked up have none, and that is said."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from torch import nn

import rlmech as rlm
from rlmech.errors import EngineError, MetricError, ObservationError


class Env(gym.Env):
    observation_space, action_space = spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(3)

    def action_masks(self):
        return np.ones(3, bool)


class Tokens(nn.Module):
    """Looks up three of five tokens."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(5, 4), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(torch.relu(self.table(x).flatten(1)))


def observed(seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(6, 3, dtype=torch.bool)
    mask[::2, 0] = mask[1, 2] = False
    return {"observation": torch.rand(6, 4, generator=generator), "action_mask": mask}


@pytest.fixture(scope="module")
def masked():
    kwargs = {"net_arch": [8], "activation_fn": nn.ReLU}
    return rlm.HookedPolicy.from_sb3(
        MaskablePPO("MlpPolicy", Env(), n_steps=8, batch_size=8, policy_kwargs=kwargs, device="cpu", seed=0)
    )


@pytest.fixture(scope="module")
def tokens():
    torch.manual_seed(0)
    return rlm.HookedPolicy(Tokens(), torch.randint(0, 5, (8, 3)))


X = torch.randint(0, 5, (8, 3), generator=torch.Generator().manual_seed(0))


def test_the_affine_map_of_a_masked_policy_gives_its_scores_and_leaves_forbidden_actions_flat(masked):
    obs = observed()

    found = rlm.attribution.local_affine(masked, obs)

    slopes = found["jacobian_observation"].values
    again = (slopes * obs["observation"].numpy()[:, None]).sum(-1) + found["offset"].values
    open_ = obs["action_mask"].numpy()
    np.testing.assert_allclose(again[open_], masked(obs).detach().numpy()[open_], atol=1e-6)
    assert (slopes[~open_] == 0).all()
    assert (found["jacobian_action_mask"].values == 0).all()
    assert (found["margin"].values > 0).all()


@pytest.mark.parametrize("method", ["integrated_gradients", "exact_integrated_gradients"])
def test_attributions_of_a_masked_policy_add_up_with_the_mask_held(masked, method):
    obs, other = observed(), observed(1)

    found = getattr(rlm.attribution, method)(masked, obs, baseline=other)
    terms = rlm.attribute_actions(masked, obs)

    assert float(abs(found["completeness_error"]).max()) < 2e-3
    assert (found["attribution_action_mask"].values == 0).all()
    np.testing.assert_allclose(terms["total"], masked(obs).detach().numpy(), rtol=1e-5)
    other["action_mask"] = ~other["action_mask"]
    with pytest.raises(ObservationError, match="leaves other actions open"):
        getattr(rlm.attribution, method)(masked, obs, baseline=other)


def test_what_holds_around_a_state_of_a_masked_policy_holds_with_its_mask(masked):
    obs = observed()
    bounds = rlm.certify.score_bounds(masked, obs, box=0.05)
    radius = rlm.certify.certified_radius(masked, obs, n_boxes=0, limit=1.0)
    low, high = bounds["low"].values, bounds["high"].values

    for seed in range(20):
        shift = (torch.rand(6, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * 0.05
        scores = masked({**obs, "observation": obs["observation"] + shift}).detach().numpy()
        assert ((low <= scores) & (scores <= high)).all()
    assert (radius["certified"] <= radius["attacked"]).all()


def test_circuits_of_a_masked_policy_are_found_with_the_mask_held(masked):
    circuit = rlm.edges.discover_circuit(
        masked, clean=observed(), corrupt=observed(1), method="eap-ig", n_edges=2, n_controls=2, progress=False
    )

    assert len(circuit.kept) == 2


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda p: rlm.attribution.local_affine(p, X), EngineError),
        (lambda p: rlm.attribute_actions(p, X), EngineError),
        (lambda p: rlm.attribution.saliency(p, X), ObservationError),
        (lambda p: rlm.certify.score_bounds(p, X, box=0.1), EngineError),
        (lambda p: rlm.certify.certified_radius(p, X[:1], limit=1.0), EngineError),
        (lambda p: rlm.edges.edge_attribution(p, clean=X, corrupt=X.flip(0), n_steps=4), MetricError),
    ],
    ids=["affine", "terms", "saliency", "bounds", "radius", "integrated edges"],
)
def test_whole_numbers_that_are_looked_up_are_named_as_the_reason(tokens, ask, error):
    with pytest.raises(error, match="whole numbers that the network looks up"):
        ask(tokens)


def test_automatic_sites_leave_out_whole_numbers(tokens):
    other = X.flip(0)

    swept = rlm.ablation_sweep(tokens, X, kind="mean")
    estimated = rlm.attribution_patching(tokens, clean=X, corrupt=other)

    assert "hook_obs" not in swept["hook"].values
    assert "hook_obs" not in estimated["hook"].values


def test_statistics_in_double_precision_leave_terms_in_the_policys_own():
    class Normalized(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.rand(4, dtype=torch.float64))
            self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, x):
            return self.net((x.double() - self.mean).float())

    torch.manual_seed(0)
    policy, obs = rlm.HookedPolicy(Normalized(), torch.rand(4, 4)), torch.rand(4, 4)

    np.testing.assert_allclose(rlm.attribute_actions(policy, obs)["total"], policy(obs).detach().numpy(), rtol=1e-5)


def test_optimal_constants_of_sixteen_bits_are_numbers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).half()
    policy, obs = rlm.HookedPolicy(net, torch.rand(8, 4).half()), torch.rand(8, 4).half()

    found = rlm.patching.optimal_constants(policy, obs, sites="1.hook_out", n_steps=5)

    assert np.isfinite(found.loss).all()
    assert (found.loss <= found.mean_loss).all()
    assert next(iter(found.values.values())).dtype == torch.float16
