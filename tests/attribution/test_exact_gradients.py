"""Exact integrated gradients add up, agree with fine quadrature and captum, and refuse baselines across the mask."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.attribution import captum_attribution, captum_conductance
from rlmech.attribution.exact_gradients import exact_integrated_gradients
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ConfigError, EngineError, MissingPackageError, ObservationError, SiteError
from tests.circuits.linear_networks import ATTENTIVE, PLAIN, Dictionary, wrapped
from tests.networks import SPEC, mlp

BENDING = ["ego", "fused", "two_layers"]


def baseline_of(name, obs):
    baseline = obs.flip(0).clone()
    if name in ATTENTIVE:
        baseline[..., 0] = obs[..., 0]
    return baseline


def quadrature(policy, obs, baseline, n_steps):
    """The midpoint rule, written out."""
    total = torch.zeros(len(obs), 3, *obs.shape[1:]).double()
    for step in range(n_steps):
        x = torch.lerp(baseline, obs, (step + 0.5) / n_steps).requires_grad_()
        scores = policy(x)
        for action in range(3):
            total[:, action] += torch.autograd.grad(scores[:, action].sum(), x, retain_graph=True)[0]
    return total / n_steps * (obs - baseline)[:, None]


@pytest.mark.parametrize("name", [*PLAIN, *ATTENTIVE])
def test_attributions_add_up_to_the_change_of_the_scores(name):
    policy, obs = wrapped(name)
    baseline = baseline_of(name, obs)
    found = exact_integrated_gradients(policy, obs, baseline=baseline, tolerance=1e-10)
    summed = found.attribution.sum(found.attribution.dims[2:])
    np.testing.assert_allclose(found.total, (policy(obs) - policy(baseline)).detach(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(summed, found.total, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.completeness_error, summed - found.total, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["mlp", "leaky", "called_twice", "all_gates", "dueling"])
def test_quadrature_comes_closer_the_finer_it_is(name):
    policy, obs = wrapped(name)
    baseline = baseline_of(name, obs)
    exact = exact_integrated_gradients(policy, obs, baseline=baseline).attribution.values
    errors = [np.abs(quadrature(policy, obs, baseline, n).numpy() - exact).max() for n in (20, 400)]
    assert errors[1] < 0.2 * errors[0] or errors[0] < 1e-12
    assert errors[1] < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("name", BENDING)
def test_with_attention_the_pattern_moves_and_the_rule_converges(name):
    policy, obs = wrapped(name)
    baseline = baseline_of(name, obs)
    coarse, fine = (
        exact_integrated_gradients(policy, obs[:2], baseline=baseline[:2], tolerance=t) for t in (1e-1, 1e-8)
    )
    reference = quadrature(policy, obs[:2], baseline[:2], 300).numpy()
    np.testing.assert_allclose(fine.attribution, reference, rtol=0, atol=5e-5)  # the reference's own error
    assert np.abs(fine.completeness_error).max() < 0.1 * np.abs(coarse.completeness_error).max() + 1e-12
    assert "Gauss-Legendre" in fine.attrs["rule"]


def test_a_gap_is_the_difference_of_its_actions_and_one_baseline_serves_all():
    policy, obs = wrapped("mlp")
    both = exact_integrated_gradients(policy, obs, baseline=obs[:1])
    gap = exact_integrated_gradients(policy, obs, baseline=obs[:1], better=2, worse=0)
    np.testing.assert_allclose(gap.attribution[:, 0], both.attribution[:, 2] - both.attribution[:, 0], atol=1e-12)
    assert exact_integrated_gradients(policy, obs[:0], baseline=obs[:1]).attribution.shape == (0, 3, 4)


def test_dictionaries_have_attributions_for_each_array():
    torch.manual_seed(0)
    obs = {"track": torch.randn(6, 2, 3).double(), "camera": torch.randn(6, 4).double()}
    baseline = {key: value.flip(0) for key, value in obs.items()}
    found = exact_integrated_gradients(HookedPolicy(Dictionary().double(), obs), obs, baseline=baseline)
    assert np.abs(found.completeness_error).max() < 1e-12
    assert found.attribution_track.dims == ("batch", "action", "entity_track", "feature_track")


def test_rows_do_not_depend_on_their_chunk(monkeypatch):
    policy, obs = wrapped("all_gates")
    baseline = baseline_of("all_gates", obs)
    whole = exact_integrated_gradients(policy, obs, baseline=baseline)
    monkeypatch.setattr("rlmech.attribution.exact_gradients._ROWS_AT_ONCE", 2)
    monkeypatch.setattr("rlmech.attribution.line_pieces._POINTS_AT_ONCE", 3)
    parts = exact_integrated_gradients(policy, obs, baseline=baseline)
    np.testing.assert_allclose(parts.attribution, whole.attribution, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [exact_integrated_gradients, captum_attribution.integrated_gradients])
def test_a_baseline_of_zeros_crosses_the_mask_and_is_refused_with_the_way_to_mend_it(method):
    policy, obs = wrapped("ego")
    with pytest.raises(ObservationError, match=r"crosses the mask") as error:
        method(policy, obs, baseline=torch.zeros_like(obs))
    assert "baseline[..., 0] = obs[..., 0]" in error.value.fix
    mended = torch.zeros_like(obs)
    mended[..., 0] = obs[..., 0]
    assert np.abs(method(policy, obs, baseline=mended, better="FASTER", worse="IDLE").completeness_error).max() < 1e-3


def test_a_baseline_across_the_mask_is_refused_without_a_spec_too():
    policy, obs = wrapped("fused")
    bare = HookedPolicy(policy.module, obs[:2])
    with pytest.raises(ObservationError, match="crosses the mask"):
        exact_integrated_gradients(bare, obs, baseline=torch.zeros_like(obs))
    with pytest.raises(ObservationError, match="does not go with"):
        exact_integrated_gradients(bare, obs, baseline=obs[:2])


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU, nn.Mish])
def test_curves_are_integrated_to_the_tolerance(activation):
    torch.manual_seed(0)
    policy = HookedPolicy(mlp(4, 8, 8, 3, activation=activation).double(), torch.rand(2, 4).double())
    obs, baseline = 3 * torch.randn(5, 4).double(), torch.zeros(1, 4).double()
    coarse, fine = (exact_integrated_gradients(policy, obs, baseline=baseline, tolerance=t) for t in (1e-4, 1e-11))
    sizes = np.abs(fine.attribution).sum("feature")
    assert (np.abs(fine.completeness_error) <= 1e-10 * sizes).all()
    assert (np.abs(coarse.attribution - fine.attribution).sum("feature") <= 1e-4 * sizes).all()
    reference = quadrature(policy, obs, baseline.expand_as(obs), 200).numpy()
    np.testing.assert_allclose(fine.attribution, reference, rtol=0, atol=1e-3)  # the reference's own error
    assert (fine.attrs["kind"], fine.attrs["tolerance"]) == ("curved", 1e-11)
    assert fine.attrs["quadrature_error"] <= 1e-11 * float(sizes.max())


def test_gates_behind_curves_and_jumps_are_closed_in_on():
    class Kinked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(torch.relu(self.second(torch.tanh(self.first(x)))))

    torch.manual_seed(1)
    policy = HookedPolicy(Kinked().double(), torch.rand(2, 3).double())
    obs = 4 * torch.randn(6, 3).double()
    found = exact_integrated_gradients(policy, obs, baseline=-obs, tolerance=1e-9)
    assert (np.abs(found.completeness_error) <= 2e-9 * np.abs(found.attribution).sum("feature")).all()
    assert int(found.n_pieces.max()) < 500


def test_tolerances_are_positive_and_what_bends_otherwise_is_refused_by_name():
    policy = HookedPolicy(mlp(4, 6, 3, activation=nn.Tanh), torch.rand(2, 4))
    with pytest.raises(ConfigError, match="positive"):
        exact_integrated_gradients(policy, torch.rand(2, 4), baseline=torch.zeros(1, 4), tolerance=0)
    normed = HookedPolicy(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)), torch.rand(2, 4))
    with pytest.raises(EngineError, match="layer_norm"):
        exact_integrated_gradients(normed, torch.rand(2, 4), baseline=torch.zeros(1, 4))


def test_captum_comes_to_the_same_in_the_limit():
    policy, obs = wrapped("mlp")
    baseline = obs.flip(0)
    exact = exact_integrated_gradients(policy, obs, baseline=baseline)
    found = captum_attribution.integrated_gradients(policy, obs, baseline=baseline, n_steps=1000)
    np.testing.assert_allclose(found.attribution, exact.attribution, rtol=0, atol=2e-3)
    np.testing.assert_allclose(found.total, exact.total, rtol=0, atol=1e-12)
    assert found.attribution.attrs["units"] == "return"


def test_deep_lift_adds_up_and_refuses_functional_activations():
    policy, obs = wrapped("mlp")
    found = captum_attribution.deep_lift(policy, obs, baseline=obs.flip(0))
    assert np.abs(found.completeness_error).max() < 1e-10
    ego, scenes = wrapped("ego")
    with pytest.raises(EngineError, match="activation modules"):
        captum_attribution.deep_lift(ego, scenes, baseline=scenes)
    twice, vectors = wrapped("called_twice")
    with pytest.raises(EngineError, match="activation modules"):
        captum_attribution.deep_lift(twice, vectors, baseline=vectors)


def test_saliency_is_the_absolute_gradient_and_leaves_the_observation_alone():
    policy, obs = wrapped("ego")
    found = captum_attribution.saliency(policy, obs, better="FASTER", worse="IDLE")
    x = obs.clone().requires_grad_()
    scores = policy(x)
    (gradient,) = torch.autograd.grad((scores[:, 2] - scores[:, 1]).sum(), x)
    np.testing.assert_allclose(found.attribution[:, 0], gradient.abs(), rtol=0, atol=1e-14)
    assert found.entity.values.tolist() == list(SPEC.entities)
    assert not obs.requires_grad


def test_conductance_of_a_full_layer_adds_up_and_a_neurons_share_is_split_over_the_observation():
    policy, obs = wrapped("mlp")
    options = {"baseline": obs.flip(0), "better": 1, "worse": 0, "n_steps": 200}
    layer = captum_conductance.layer_conductance(policy, obs, "1.hook_out", **options)
    assert layer.conductance.dims == ("batch", "action", "neuron")
    assert np.abs(layer.completeness_error).max() < 1e-2
    neuron = captum_conductance.neuron_conductance(policy, obs, "1.hook_out", neuron=3, **options)
    np.testing.assert_allclose(neuron.total, layer.conductance[..., 3], rtol=0, atol=1e-12)
    assert np.abs(neuron.completeness_error).max() < 1e-2
    with pytest.raises(SiteError, match="no unit 8"):
        captum_conductance.neuron_conductance(policy, obs, "1.hook_out", neuron=8, **options)


def test_layers_that_are_no_modules_are_refused_by_name():
    policy, obs = wrapped("ego")
    with pytest.raises(SiteError, match="not what one module"):
        captum_conductance.layer_conductance(policy, obs, "attention_layer.hook_z", baseline=obs)
    with pytest.raises(SiteError, match="no hook point"):
        captum_conductance.layer_conductance(policy, obs, "attention_layer.hook_zz", baseline=obs)


def test_without_captum_the_error_says_how_to_get_it(monkeypatch):
    policy, obs = wrapped("mlp")
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(MissingPackageError) as error:
        captum_attribution.saliency(policy, obs)
    assert 'pip install "rlmech[captum]"' in error.value.fix


def test_the_shipped_policies_are_attributed_to_single_precision():
    policy = rlm.load("zoo:intersection-ego-attention")
    obs = torch.rand(3, 15, 7, generator=torch.Generator().manual_seed(0))
    baseline = obs.mean(1, keepdim=True).expand_as(obs).clone()
    baseline[..., 0] = obs[..., 0]
    found = exact_integrated_gradients(policy, obs, baseline=baseline, better="FASTER", worse="SLOWER")
    assert np.abs(found.completeness_error).max() < 1e-3 * (1 + np.abs(found.total).max())
