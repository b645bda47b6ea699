"""Attribution patching is patching to first order: equal to it where nothing bends, and it says where that is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rlmech as rlm
from rlmech.attribution.first_order import attribution_patching
from rlmech.errors import ConfigError, EngineError, MetricError, ObservationError, SiteError
from rlmech.metrics.score_metrics import action_flip, action_score, policy_kl
from rlmech.patching.results import bind_pairs
from rlmech.patching.sweeps.sweep import outputs_of
from tests.networks import (
    Branching,
    CalledTwice,
    Convolutional,
    FusedAttention,
    InPlace,
    MultiHead,
    ScaledQueries,
    Transformer,
    mlp,
    scenes,
)


class Gates(nn.Module):
    """Every kind of gate, a product of two branches, and a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.norm = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.leaky_relu(self.a(x), 0.2)
        left = nn.functional.hardtanh(self.b(h)).abs() + torch.clamp(h, min=-0.1, max=0.4) + nn.functional.relu6(5 * h)
        right = torch.maximum(self.c(h), h) * (h[:, :1] > 0) + self.norm(h) * h.amax(1, keepdim=True)
        return self.head(torch.cat([left, left[:, :1] * right], 1))


def networks(seed: int) -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(seed)
    entities = scenes(16, n_entities=5, seed=seed)
    return {
        "mlp": (mlp(5, 7, 7, 3), torch.randn(16, 5)),
        "gates": (Gates(), torch.randn(16, 4)),
        "convolution": (Convolutional(), torch.rand(16, 2, 8, 8)),
        "in place": (InPlace(), torch.randn(16, 4)),
        "called twice": (CalledTwice(), torch.randn(16, 4)),
        "multi-head": (MultiHead(), entities),
        "fused attention": (FusedAttention(), entities),
        "scaled queries": (ScaledQueries(), entities),
        "transformer": (Transformer(), entities),
    }


def pairs(seed: int, name: str, *, near: float = 1.0) -> tuple[rlm.HookedPolicy, Tensor, Tensor]:
    module, x = networks(seed)[name]
    policy = rlm.HookedPolicy(module.double().eval(), x[:2].double())
    clean, corrupt = x.double().chunk(2)
    moved = clean + near * (corrupt - clean)
    if x.ndim == 3:  # presence stays a truth value
        moved[:, :, 0] = clean[:, :, 0] if near < 1 else corrupt[:, :, 0]
    return policy, clean, moved


def all_sites(policy: rlm.HookedPolicy) -> list[rlm.Site]:
    """Each point whole, and each position along its first axis, where gradients exist."""
    names = [name for name, point in policy.hook_dict.items() if point.kind != "mask"]
    whole = [rlm.Site(name) for name in names]
    parts = [s for n in names for s in policy.sites(n, over=policy.hook_dict[n].axes[1:2])]
    return whole + parts[:: 1 + len(parts) // 30]


def patched_effects(policy, sites, *, base: Tensor, source: Tensor, bound, start: Tensor) -> np.ndarray:
    """The effect of each patch by whole edited forward passes."""
    effects = []
    with torch.no_grad():
        _, cache = policy.run_with_cache(source)
    for site in sites:
        with torch.no_grad(), policy.edited([rlm.patch(site, source=cache)]):
            outputs = outputs_of(policy, base)
        effects.append((bound(outputs.scores, value=outputs.value) - start).numpy())
    return np.stack(effects)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_on_a_linear_network_it_is_activation_patching(direction):
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)).double()
    policy = rlm.HookedPolicy(linear, torch.rand(2, 5, dtype=torch.float64))
    clean, corrupt = torch.randn(2, 9, 5, dtype=torch.float64)
    sites = all_sites(policy)
    found = attribution_patching(
        policy, clean=clean, corrupt=corrupt, sites=sites, direction=direction, certificate=True
    )
    exact = rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=sites, direction=direction)
    for name in ("effect", "change", "effect_low", "change_high", "clean", "corrupt", "tiny_denominator"):
        np.testing.assert_allclose(found[name], exact[name], atol=1e-12)
    assert np.abs(found["remainder"]).max() < 1e-12
    assert found["certified"].all()
    assert found.attrs["certified_share"] == 1
    assert list(found["hook"].to_numpy()) == list(exact["hook"].to_numpy())


def test_it_misses_a_gate_that_is_off_and_patching_sees_it():
    net = mlp(1, 1, 2)
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), (1.0, 0.0, [[2.0], [0.0]], 0.0), strict=True):
            parameter.copy_(torch.tensor(value))
    policy = rlm.HookedPolicy(net.double(), torch.rand(2, 1, dtype=torch.float64))
    clean, corrupt = torch.tensor([[3.0]], dtype=torch.float64), torch.tensor([[-1.0]], dtype=torch.float64)
    result = attribution_patching(
        policy, clean=clean, corrupt=corrupt, sites=["0.hook_out", "1.hook_out"], metric=action_score(0),
        certificate=True,
    )  # fmt: skip
    assert result["estimate"].to_numpy().tolist() == [[0.0], [6.0]]  # before the gate, and behind it
    assert (result["patched"] - result["corrupt"]).to_numpy().tolist() == [[6.0], [6.0]]
    assert result["remainder"].to_numpy().tolist() == [[6.0], [0.0]]
    assert result["certified"].to_numpy().tolist() == [[False], [True]]


@pytest.mark.parametrize(
    ("name", "seed"), [(name, seed) for name in networks(0) for seed in range(3) if seed == 2 or name != "transformer"]
)
def test_certified_means_exact_in_any_network(name, seed):
    policy, clean, corrupt = pairs(seed, name, near=[0.02, 0.3, 1.0][seed])
    sites = all_sites(policy)
    result = attribution_patching(policy, clean=clean, corrupt=corrupt, sites=sites, certificate=True)
    bound = bind_pairs(policy, clean=clean, corrupt=corrupt, metric=None)
    exact = patched_effects(policy, sites, base=corrupt, source=clean, bound=bound, start=bound.corrupt)
    np.testing.assert_allclose(result["patched"] - result["corrupt"], exact, atol=1e-12)
    certified = result["certified"].to_numpy()
    np.testing.assert_allclose(result["estimate"].to_numpy()[certified], exact[certified], atol=1e-12)
    assert certified.any()
    if seed == 2:  # far apart, something bends, and the certificate says so
        assert not certified.all()
        assert np.abs(result["remainder"].to_numpy()[~certified]).max() > 1e-9


def test_nearby_runs_of_a_relu_network_are_certified_almost_everywhere():
    policy, clean, corrupt = pairs(0, "mlp", near=1e-4)
    result = attribution_patching(policy, clean=clean, corrupt=corrupt, sites=all_sites(policy), certificate=True)
    assert result.attrs["certified_share"] > 0.99


def test_a_metric_that_bends_is_not_certified():
    policy, clean, corrupt = pairs(0, "mlp")
    result = attribution_patching(
        policy, clean=clean, corrupt=corrupt, metric=policy_kl(temperature=1.0), sites="4.hook_out", certificate=True,
    )  # fmt: skip
    assert not result["certified"].any()
    assert np.abs(result["remainder"]).min() > 1e-9


@pytest.mark.parametrize("name", ["mlp", "convolution", "fused attention", "scaled queries", "transformer"])
def test_the_integrated_estimates_of_a_point_add_up_to_its_patch(name):
    policy, clean, corrupt = pairs(1, name)
    if clean.ndim == 3:
        corrupt[:, :, 0] = clean[:, :, 0]  # whether a vehicle is there is a step, which no gradient sees
    sites = [site for site in all_sites(policy) if not site.selection]
    sites = sites[:: 1 + len(sites) // 12]
    errors = [
        np.abs(attribution_patching(policy, clean=clean, corrupt=corrupt, sites=sites, n_steps=n)["completeness_error"])
        for n in (2, 128)
    ]
    assert float(errors[1].max()) < 5e-3
    assert float(errors[1].mean()) < 0.1 * float(errors[0].mean())


def test_the_completeness_error_is_that_of_the_whole_point_s_exact_patch():
    policy, clean, corrupt = pairs(1, "mlp")
    sites = policy.sites("0.hook_out", over="neuron")
    result = attribution_patching(policy, clean=clean, corrupt=corrupt, sites=sites, n_steps=3)
    whole = rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites="0.hook_out")
    error = result["estimate"].sum("site") - (whole["patched"] - whole["corrupt"]).isel(site=0)
    np.testing.assert_allclose(result["completeness_error"].isel(site=4), error, atol=1e-12)


def test_exact_adds_the_patched_runs_and_the_remainder():
    policy, clean, corrupt = pairs(0, "mlp")
    result = attribution_patching(policy, clean=clean, corrupt=corrupt, exact=True)
    exact = rlm.activation_patching(policy, clean=clean, corrupt=corrupt)
    np.testing.assert_allclose(result["patched"], exact["patched"], atol=1e-12)
    np.testing.assert_allclose(
        result["remainder"], exact["patched"] - exact["corrupt"] - result["estimate"], atol=1e-12
    )
    assert "certified" not in result


@pytest.mark.parametrize("name", ["multi-head", "fused attention", "scaled queries"])
def test_the_softmax_repair_is_exact_where_only_the_softmax_bends(name):
    policy, clean, corrupt = pairs(0, name)
    corrupt[:, :, 0] = clean[:, :, 0]
    block = next(iter(policy.attention.values()))
    sites = [
        rlm.Site(block.names["q"], head=1),
        rlm.Site(block.names["k"], entity=(1, 3)),
        rlm.Site(block.names["attn_scores"], key=2),
    ]
    options = {"clean": clean, "corrupt": corrupt, "sites": sites, "certificate": True}
    plain = attribution_patching(policy, **options, repairs=())
    repaired = attribution_patching(policy, **options, repairs=("softmax",))
    assert np.abs(plain["remainder"]).max() > 1e-6
    assert not plain["certified"].all()
    assert np.abs(repaired["remainder"]).max() < 1e-12
    assert repaired["certified"].all()
    assert repaired.attrs["repairs"] == "softmax"


def test_the_softmax_repair_sees_through_a_saturated_softmax():
    policy, clean, corrupt = pairs(0, "scaled queries")
    with torch.no_grad():
        policy.module.w_q *= 300
    block = next(iter(policy.attention.values()))
    options = {"clean": clean, "corrupt": corrupt, "sites": block.names["q"], "exact": True}
    plain, repaired = (attribution_patching(policy, **options, repairs=r) for r in ((), ("softmax",)))
    assert np.abs(repaired["remainder"]).max() < 1e-9 < 1e-3 < np.abs(plain["remainder"]).max()


class Cancelling(nn.Module):
    """x -> h1 -> Q with +1, and x -> h1 -> h2 -> Q with -1."""

    def __init__(self) -> None:
        super().__init__()
        self.h1, self.h2, self.out = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), nn.Linear(1, 2)
        with torch.no_grad():
            for layer in (self.h1, self.h2):
                layer.weight.fill_(1.0)
            self.out.weight.copy_(torch.tensor([[1.0], [0.0]]))

    def forward(self, x: Tensor) -> Tensor:
        h1 = self.h1(x)
        return self.out(h1 - self.h2(h1)) + x  # so that the runs differ


def test_gradient_dropout_sees_what_cancels():
    policy = rlm.HookedPolicy(Cancelling().double(), torch.rand(2, 1, dtype=torch.float64))
    clean, corrupt = torch.full((3, 1), 2.0, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    result = attribution_patching(
        policy, clean=clean, corrupt=corrupt, sites=["h1.hook_out", "h2.hook_out"], metric=action_score(0),
        repairs=("softmax", "dropout"),
    )  # fmt: skip
    assert result["estimate"].to_numpy().tolist() == [[0.0] * 3, [-2.0] * 3]
    assert result["magnitude"].to_numpy().tolist() == [
        [1.0] * 3,
        [2.0] * 3,
    ]  # the mean of |0| and |2|; the one way that there is


def test_sites_of_several_positions_are_the_sums_of_their_positions():
    policy, clean, corrupt = pairs(0, "convolution")
    name = "body.2.hook_out"
    sites = [rlm.Site(name, channel=(0, 2), width=(1, 4)), rlm.Site(name, width=-1, channel=3), rlm.Site(name)]
    result = attribution_patching(policy, clean=clean, corrupt=corrupt, sites=sites)
    single = attribution_patching(
        policy, clean=clean, corrupt=corrupt, sites=policy.sites(name, over=("channel", "width"))
    )["estimate"].to_numpy()
    n_columns = policy.hook_dict[name].size("width")
    picked = [c * n_columns + w for c in (0, 2) for w in (1, 4)]
    np.testing.assert_allclose(result["estimate"][0], single[picked].sum(0), atol=1e-12)
    np.testing.assert_allclose(result["estimate"][1], single[4 * n_columns - 1], atol=1e-12)
    np.testing.assert_allclose(result["estimate"][2], single.sum(0), atol=1e-12)


def test_equal_runs_give_zero_and_flag_their_denominator():
    policy, clean, _ = pairs(0, "fused attention")  # scores of absent entities are -inf in both
    name = next(iter(policy.attention.values())).names["attn_scores"]
    for repairs in ((), ("softmax", "dropout")):
        result = attribution_patching(policy, clean=clean, corrupt=clean, sites=name, repairs=repairs)
        assert result["estimate"].to_numpy().tolist() == [[0.0] * len(clean)]
        assert result["effect"].item() == 0
        assert result["tiny_denominator"].all()


def test_it_works_under_no_grad_with_frozen_parameters_and_leaves_no_gradients():
    policy, clean, corrupt = pairs(0, "mlp")
    expected = attribution_patching(policy, clean=clean, corrupt=corrupt)
    assert all(parameter.grad is None for parameter in policy.parameters())
    policy.requires_grad_(False)
    with torch.no_grad():
        found = attribution_patching(policy, clean=clean, corrupt=corrupt)
    np.testing.assert_array_equal(found["estimate"], expected["estimate"])


def test_the_estimate_follows_the_exact_effect_on_the_shipped_policies():
    observations = torch.rand(64, 25, generator=torch.Generator().manual_seed(0)).reshape(64, 5, 5)
    policy = rlm.load("zoo:highway-dqn-mlp")
    result = attribution_patching(policy, clean=observations[:32], corrupt=observations[32:], exact=True)
    exact = result["patched"] - result["corrupt"]
    hooks = result["hook"].to_numpy()
    last = exact.to_numpy()[hooks == hooks[-1]]
    np.testing.assert_allclose(result["estimate"].to_numpy()[hooks == hooks[-1]], last, atol=1e-4)
    assert np.corrcoef(result["estimate"].to_numpy().ravel(), exact.to_numpy().ravel())[0, 1] > 0.8


def test_what_it_cannot_do_is_refused_with_the_reason():
    policy, clean, corrupt = pairs(0, "fused attention")
    options = {"clean": clean, "corrupt": corrupt}
    with pytest.raises(MetricError, match="action_flip"):
        attribution_patching(policy, **options, metric=action_flip())
    with pytest.raises(MetricError, match="has no gradient"):
        attribution_patching(policy, **options, metric=lambda scores, context: scores.detach()[:, 0])
    with pytest.raises(SiteError, match=r"no gradient at 'hook_mask'"):
        attribution_patching(policy, **options, sites="hook_mask")
    with pytest.raises(SiteError, match=r"infinite amount(?s:.*)in the pairs \d"):
        attribution_patching(policy, **options, sites="hook_attn_scores", repairs=())
    with pytest.raises(ConfigError, match="no direction 'both'"):
        attribution_patching(policy, **options, direction="both")
    with pytest.raises(ConfigError, match="no repair 'qk'"):
        attribution_patching(policy, **options, repairs=("qk",))
    with pytest.raises(ConfigError, match="integrated one"):
        attribution_patching(policy, **options, n_steps=2, certificate=True)
    with pytest.raises(ConfigError, match="negative"):
        attribution_patching(policy, **options, n_steps=-1)
    with pytest.raises(ObservationError, match="pair up"):
        attribution_patching(policy, clean=clean, corrupt=corrupt[:2])
    eager = rlm.HookedPolicy(Branching(), torch.rand(2, 4))
    with pytest.raises(EngineError, match="traced graph"):
        attribution_patching(eager, clean=torch.rand(2, 4), corrupt=torch.rand(2, 4), n_steps=2)
    policy = rlm.HookedPolicy(Convolutional().eval(), torch.rand(2, 2, 8, 8))
    policy.train()
    with pytest.raises(EngineError, match="in train mode"):
        attribution_patching(policy, clean=torch.rand(2, 2, 8, 8), corrupt=torch.rand(2, 2, 8, 8))


class Coupled(nn.Module):
    """Scores that depend on the other rows of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return self.head(torch.relu(h - h.mean(0, keepdim=True)))


def test_a_network_that_couples_rows_is_refused():
    x = torch.randn(6, 4)
    policy = rlm.HookedPolicy(Coupled(), x)
    with pytest.raises(EngineError, match="couples the rows"):
        attribution_patching(policy, clean=x, corrupt=x.flip(0))
