"""Laws of patching that hold on every network, known circuit or not; and captum as an independent judge."""

import warnings
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.core.site import Site
from rlmech.metrics.score_metrics import action_gap
from tests import networks
from tests.testbed.policies import POLICIES, make

N_PAIRS = 6


def pairs(*shape, scenes=False):
    generator = torch.Generator().manual_seed(0)
    if scenes:
        return networks.scenes(N_PAIRS, seed=1).double(), networks.scenes(N_PAIRS, seed=2).double()
    drawn = torch.randn(2, N_PAIRS, *shape, generator=generator, dtype=torch.float64)
    return drawn[0], drawn[1]


def wrapped(module, clean, corrupt):
    return rlm.HookedPolicy(module.double().eval(), clean), clean, corrupt


@cache
def network(name):
    """A policy of random weights, float64, with clean and corrupt observations."""
    torch.manual_seed(0)
    match name:
        case "mlp":
            return wrapped(networks.mlp(4, 8, 6, 3), *pairs(4))
        case "called twice":
            return wrapped(networks.CalledTwice(), *pairs(4))
        case "convolutional":
            return wrapped(networks.Convolutional(), *pairs(2, 8, 8))
        case "transformer":
            return wrapped(networks.Transformer(padding=True), *pairs(scenes=True))
        case "fused attention":
            return wrapped(networks.FusedAttention(), *pairs(scenes=True))
        case "lstm":
            track, camera = pairs(5, 3), pairs(4)
            clean, corrupt = ({"track": t, "camera": c} for t, c in zip(track, camera, strict=True))
            return wrapped(networks.DictObservation(), clean, corrupt)
        case "zoo:intersection-ego-attention" | "zoo:highway-dqn-mlp":
            policy = rlm.load(name).double()
            shape = policy.point("hook_obs").shape[1:]
            return policy, *(pairs(scenes=True) if shape == (15, 7) else pairs(*shape))
        case _:
            known = make(name)
            return known.policy, known.clean, known.corrupt


RANDOM = ("mlp", "called twice", "convolutional", "transformer", "fused attention", "lstm")
TRAINED = ("zoo:intersection-ego-attention", "zoo:highway-dqn-mlp")
ALL = (*RANDOM, *TRAINED, *POLICIES)


@cache
def some_sites(name):
    """Whole points, and single positions along each point's last axis; of a deep network only its first half."""
    points = {
        path: point
        for path, point in network(name)[0].hook_dict.items()
        if point.kind not in ("mask", "result") and ".layers.1." not in path
    }
    whole = [Site(path) for path in points]
    return whole + [Site(path, **{p.axes[-1]: 0}) for path, p in points.items() if len(p.axes) > 1]


@pytest.mark.parametrize("name", ALL)
def test_patching_a_run_with_itself_changes_nothing_bit_for_bit(name):
    policy, clean, _ = network(name)
    result = rlm.activation_patching(
        policy, clean=clean, corrupt=clean, sites=some_sites(name), metric=action_gap(0, 1)
    )
    assert (result.patched.values == result.clean.values).all()
    assert (result["change"] == 0).all()


@pytest.mark.parametrize("name", ALL)
def test_a_pair_of_equal_observations_has_effect_zero_and_a_flagged_denominator_not_nan(name):
    policy, clean, corrupt = network(name)
    if isinstance(clean, dict):
        corrupt = {key: torch.cat((clean[key][:1], value[1:])) for key, value in corrupt.items()}
    else:
        corrupt = torch.cat((clean[:1], corrupt[1:]))
    sites = some_sites(name)
    result = rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=sites, metric=action_gap(0, 1))
    assert result.tiny_denominator.values[0]
    assert (result.patched.values[:, 0] == result.corrupt.values[0]).all()
    assert np.isfinite(result.effect).all()
    alone = rlm.activation_patching(
        policy, clean=_rows(clean, 1), corrupt=_rows(corrupt, 1), sites=sites, metric=action_gap(0, 1)
    )
    assert (alone.effect == 0).all()
    assert not alone.attrs["denominator_trustworthy"]


def _rows(obs, n):
    return {key: value[:n] for key, value in obs.items()} if isinstance(obs, dict) else obs[:n]


@pytest.mark.parametrize("name", ALL)
def test_noising_with_the_roles_exchanged_is_denoising(name):
    policy, clean, corrupt = network(name)
    sites = some_sites(name)
    noise = rlm.activation_patching(
        policy, clean=clean, corrupt=corrupt, sites=sites, metric=action_gap(0, 1), direction="noise"
    )
    denoise = rlm.activation_patching(policy, clean=corrupt, corrupt=clean, sites=sites, metric=action_gap(0, 1))
    assert (noise.patched.values == denoise.patched.values).all()
    assert (noise.effect.values == denoise.effect.values).all()


@pytest.mark.parametrize("name", ALL)
def test_patching_a_full_cut_is_the_source_run(name):
    policy, clean, corrupt = network(name)
    observed = [name for name in policy.hook_dict if name.startswith("hook_obs")]
    scores = next(name for name, point in policy.hook_dict.items() if point.kind == "output")
    cuts = [tuple(Site(name) for name in observed), (Site(scores),)]
    for direction in ("denoise", "noise"):
        result = rlm.activation_patching(
            policy, clean=clean, corrupt=corrupt, sites=cuts, metric=action_gap(0, 1), direction=direction
        )
        source = result.clean if direction == "denoise" else result.corrupt
        np.testing.assert_allclose(result.patched, np.broadcast_to(source, result.patched.shape), rtol=0, atol=1e-9)
        np.testing.assert_allclose(result.effect, 1, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["cancellation", "brake", "backup", "random_circuit", "and_gate"])
def test_patching_all_units_of_a_cut_together_is_the_source_run_though_none_of_them_alone_is(name):
    known = make(name)
    read_by_scores = {edge[0] for edge in known.all_edges if edge[1] in known.outputs}
    metric = action_gap(known.better, known.worse)
    sites = [tuple(unit for unit in known.units if unit in read_by_scores)]
    result = rlm.activation_patching(known.policy, clean=known.clean, corrupt=known.corrupt, sites=sites, metric=metric)
    np.testing.assert_allclose(result.patched[0], result.clean, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [*RANDOM, *TRAINED])
def test_a_pair_is_patched_alike_alone_and_among_others(name):
    policy, clean, corrupt = network(name)
    sites = some_sites(name)
    together = rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=sites, metric=action_gap(0, 1))
    alone = rlm.activation_patching(
        policy, clean=_rows(clean, 2), corrupt=_rows(corrupt, 2), sites=sites, metric=action_gap(0, 1)
    )
    np.testing.assert_allclose(alone.patched, together.patched[:, :2], rtol=0, atol=1e-9)


# ---- captum


def layer_feature_ablation(gap, layer, clean, baselines, **options):
    """captum's `LayerFeatureAblation`: gap of the clean run minus gap with each feature at its baseline."""
    attr = pytest.importorskip("captum.attr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum's own remarks on gradients and dtypes
        return attr.LayerFeatureAblation(gap, layer).attribute(clean, layer_baselines=baselines, **options).detach()


@pytest.mark.parametrize("depth", [1, 3])
def test_noising_neurons_agrees_with_captums_layer_feature_ablation(depth):
    policy, clean, corrupt = network("mlp")
    module = policy.module
    assert isinstance(module, nn.Sequential)
    _, cache = policy.run_with_cache(corrupt)
    wanted = layer_feature_ablation(
        lambda x: module(x)[:, 0] - module(x)[:, 1], module[depth], clean, cache[f"{depth}.hook_out"].detach()
    )
    sites = policy.sites(f"{depth}.hook_out", over="neuron")
    result = rlm.activation_patching(
        policy, clean=clean, corrupt=corrupt, sites=sites, metric=action_gap(0, 1), direction="noise"
    )
    np.testing.assert_allclose(result.clean - result.patched, wanted, rtol=0, atol=1e-6)
    assert np.abs(wanted.numpy()).max() > 1e-2


def test_noising_channels_agrees_with_captums_layer_feature_ablation():
    policy, clean, corrupt = network("convolutional")
    module, layer = policy.module, policy.module.get_submodule("body.2")
    _, cache = policy.run_with_cache(corrupt, "body.2.hook_out")
    n_channels = policy.point("body.2.hook_out").size("channel")
    channel = torch.arange(n_channels)[None, :, None, None].expand(1, *cache["body.2.hook_out"].shape[1:])
    wanted = layer_feature_ablation(
        lambda x: module(x)[0][:, 0] - module(x)[0][:, 1],
        layer,
        clean,
        cache["body.2.hook_out"].detach(),
        layer_mask=channel.contiguous(),
    )[:, :, 0, 0]
    result = rlm.activation_patching(
        policy,
        clean=clean,
        corrupt=corrupt,
        sites=policy.sites("body.2.hook_out", over="channel"),
        metric=action_gap(0, 1),
        direction="noise",
    )
    np.testing.assert_allclose(result.clean - result.patched, wanted, rtol=0, atol=1e-6)
