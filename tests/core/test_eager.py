"""The eager engine: the same points by the same names, for what cannot be exported and for train mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.core.eager import EagerEngine
from rlmech.errors import AttentionError, EngineError, SiteError
from rlmech.nets import EgoAttentionNetwork
from tests import networks as nets


def forced_eager(module, obs, spec=None):
    """A policy on the eager engine although its module could be exported."""
    policy = rlm.HookedPolicy(module, obs, spec=spec)
    engine = EagerEngine(policy.module, policy._format, reason="for this test", root="", output_kind="q_values")
    return policy, engine


class RowsInTwo(nn.Module):
    """Each row as two, one below the other: what it holds in between has twice as many rows as the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.relu, self.head = nn.Linear(2, 5), nn.ReLU(), nn.Linear(10, 3)

    def forward(self, x):
        return self.head(self.relu(self.inner(x.reshape(-1, 2))).reshape(-1, 10))


@pytest.mark.parametrize(
    ("make", "obs"),
    [
        (lambda: nets.mlp(4, 8, 3), torch.rand(3, 4)),
        (nets.CalledTwice, torch.rand(3, 4) - 0.5),
        (nets.InPlace, torch.rand(3, 4) - 0.5),
        (nets.Convolutional, torch.rand(3, 2, 8, 8)),
        (nets.DictObservation, {"track": torch.rand(3, 6, 3), "camera": torch.rand(3, 4)}),
        (lambda: EgoAttentionNetwork(7, 3), nets.scenes(3)),
        (nets.ScaledQueries, nets.scenes(3)),
        (lambda: RowsInTwo(), torch.rand(3, 4)),
    ],
)
def test_eager_offers_the_graphs_points_with_the_same_values(make, obs):
    torch.manual_seed(0)
    policy, engine = forced_eager(make().eval(), obs)
    with torch.no_grad():
        _, cache = policy.run_with_cache(obs)
        names = tuple(engine.points)
        scores, values = engine.run(policy.coerce(obs), names, policy._registry, policy.hook_dict)
    missing = set(policy.hook_dict) - set(names)
    assert not {name for name in missing if not name.endswith(("hook_result", "hook_attn_out", "hook_mask"))} - {
        "tied.hook_out",
        "layer@2.hook_out",
    }
    for name in set(names) & set(policy.hook_dict):
        torch.testing.assert_close(values[name], cache[name], rtol=1e-5, atol=1e-6)
        assert engine.points[name].axes == policy.hook_dict[name].axes
    with torch.no_grad():  # an LSTM rounds otherwise where gradients are kept
        assert torch.equal(scores, policy(obs))


def test_data_dependent_control_flow_runs_eagerly_and_says_why():
    module = nets.Branching()
    policy = rlm.HookedPolicy(module, torch.tensor([[1.0] * 4, [-1.0] * 4]))
    assert policy.engine == "eager"
    assert policy.engine_reason
    assert {"left.hook_out", "right.hook_out", "tanh_0.hook_out", "head.hook_out"} <= set(policy.hook_dict)
    for sign, used in ((1.0, "left"), (-1.0, "right")):
        obs = torch.full((3, 4), sign)
        scores, cache = policy.run_with_cache(obs)
        assert torch.equal(scores, module(obs))
        assert f"{used}.hook_out" in cache
        assert ("left.hook_out" in cache) != ("right.hook_out" in cache)
        edited = policy.run_with_hooks(obs, fwd_hooks=[("tanh_0.hook_out", lambda tensor, hook: tensor * 0)])
        torch.testing.assert_close(edited, module.head.bias.expand(3, 3))
    with pytest.raises(EngineError, match="needs the traced graph"):
        _ = policy.graph_engine


def test_a_hook_on_the_branch_not_taken_is_an_error():
    policy = rlm.HookedPolicy(nets.Branching(), torch.tensor([[1.0] * 4, [-1.0] * 4]))
    with pytest.raises(rlm.RlmechError, match="never fired"):
        policy.run_with_hooks(torch.ones(2, 4), fwd_hooks=[("right.hook_out", lambda tensor, hook: None)])


def test_sweeps_work_on_the_eager_engine():
    policy = rlm.HookedPolicy(nets.Branching(), torch.tensor([[1.0] * 4, [-1.0] * 4]))
    clean, corrupt = torch.rand(6, 4), torch.rand(6, 4)
    result = rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=["tanh_0.hook_out", "hook_obs"])
    assert result.effect.values == pytest.approx([1, 1], abs=1e-5)
    assert result.attrs["engine"] == "eager"


def test_train_mode_is_eager_and_back():
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).eval()
    policy = rlm.HookedPolicy(module, torch.rand(8, 4))
    assert policy.engine == "graph"
    policy.train()
    assert policy.engine == "eager"
    assert "train mode" in policy.engine_reason
    obs = torch.rand(8, 4)
    torch.manual_seed(0)
    expected = module(obs)
    torch.manual_seed(0)
    scores, cache = policy.run_with_cache(obs)
    assert torch.equal(scores, expected)
    normalised = cache["1.hook_out"]
    torch.testing.assert_close(normalised.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    policy.eval()
    assert policy.engine == "graph"
    torch.testing.assert_close(policy(obs), module(obs))


def test_wrapping_for_train_mode_leaves_running_statistics_alone():
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    policy = rlm.HookedPolicy(module, torch.rand(8, 4))
    policy.train()
    assert policy.engine == "eager"
    assert int(module[1].num_batches_tracked) == 0
    assert not module[1].running_mean.any()


def test_a_network_without_such_layers_keeps_the_graph_in_train_mode():
    policy = rlm.HookedPolicy(nets.mlp(4, 8, 3), torch.rand(2, 4))
    policy.train()
    assert policy.engine == "graph"


def test_eager_attention_has_points_but_no_weights():
    torch.manual_seed(0)
    _, engine = forced_eager(EgoAttentionNetwork(7, 3), nets.scenes(3))
    block = engine.attention["attention_layer"]
    assert block.names["pattern"] == "attention_layer.hook_pattern"
    with pytest.raises(AttentionError, match="eager engine"):
        _ = block.W_Q


def test_nothing_stays_on_the_modules():
    policy = rlm.HookedPolicy(nets.Branching(), torch.tensor([[1.0] * 4, [-1.0] * 4]))

    def fail(tensor, hook):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        policy.run_with_hooks(torch.ones(2, 4), fwd_hooks=[("left.hook_out", fail)])
    for module in policy.module.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_point_that_only_the_graph_has_is_refused_in_train_mode():
    policy = rlm.HookedPolicy(nets.Transformer().eval(), nets.scenes(2))
    policy.train()
    with pytest.raises(EngineError, match=r"policy\.eval\(\)"):
        policy.run_with_cache(nets.scenes(2), "*.hook_result")
    assert "embed.hook_out" in policy.run_with_cache(nets.scenes(2))[1]


def test_a_pass_made_inside_a_hook_does_not_disturb_the_pass_around_it():
    torch.manual_seed(0)
    policy, obs = rlm.HookedPolicy(nets.Branching(), torch.rand(2, 4)), torch.rand(3, 4)
    inner: list[torch.Tensor] = []

    def run_again(tensor, hook):
        inner.append(policy.module(obs))
        inner.append(policy.run_with_cache(obs)[0])

    handles = [policy.point(name).add_hook(run_again) for name in ("hook_obs", "tanh_0.hook_out")]
    _, cache = policy.run_with_cache(obs)
    for handle in handles:
        handle.remove()
    _, plain = policy.run_with_cache(obs)
    assert len(inner) == 4
    assert list(cache) == list(plain)
    for name, value in plain.items():
        assert torch.equal(cache[name], value)


class Experts(nn.Module):
    """A mixture of experts: how many rows an expert gets follows from the data."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 2), nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])

    def forward(self, x):
        choice, scores = self.gate(x).argmax(-1), torch.zeros(x.shape[0], 3, dtype=x.dtype)
        for number, expert in enumerate(self.experts):
            if (chosen := choice == number).any():
                scores[chosen] = expert(x[chosen])
        return scores


def test_a_point_whose_shape_follows_from_the_data_is_left_out_and_named():
    torch.manual_seed(0)
    obs = torch.randn(16, 4)
    policy = rlm.HookedPolicy(Experts(), obs)
    assert list(policy.hook_dict) == ["hook_obs", "gate.hook_out", "hook_q_values"]
    assert set(policy.left_out) == {"experts.0.hook_out", "experts.1.hook_out"}
    with pytest.raises(SiteError, match="its shape follows from the data"):
        policy.run_with_cache(obs, names="experts.0.hook_out")
    for n in (1, 5, 16):
        _, cache = policy.run_with_cache(obs[:n])
        assert {name: value.shape for name, value in cache.items()} == {
            name: (n, *point.shape[1:]) for name, point in policy.hook_dict.items()
        }


class BranchingAttention(nn.Module):
    """Attention in one call of torch, in a module that cannot be exported."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(7, 8), nn.Linear(7, 8), nn.Linear(7, 8), nn.Linear(8, 3)

    def forward(self, x):
        def heads(y):
            return y.view(y.shape[0], -1, 2, 4).transpose(1, 2)

        z = nn.functional.scaled_dot_product_attention(heads(self.q(x[:, :1])), heads(self.k(x)), heads(self.v(x)))
        scores = self.out(z.transpose(1, 2).flatten(1))
        return scores if float(x.sum()) > -1e9 else scores * 2


def test_whatever_the_eager_engine_offers_fires_and_is_cached_in_the_shape_it_announces():
    torch.manual_seed(0)
    obs = nets.scenes(3)
    policy = rlm.HookedPolicy(BranchingAttention(), obs)
    assert policy.engine == "eager"
    assert {"hook_pattern", "hook_attn_scores"} <= set(policy.left_out)
    for n in (1, 3):
        _, cache = policy.run_with_cache(obs[:n])
        assert set(cache) == set(policy.hook_dict)
        for name, point in policy.hook_dict.items():
            assert cache[name].shape == (n, *point.shape[1:])
            policy.run_with_hooks(obs[:n], fwd_hooks=[(name, lambda tensor, hook: tensor * 0)])
    with pytest.raises(AttentionError, match="inside a single call"):
        policy.attention[""].names["pattern"]


def test_an_eager_policy_follows_its_modules_precision():
    policy = rlm.HookedPolicy(nets.Branching(), torch.rand(2, 4)).double()
    scores, cache = policy.run_with_cache(torch.rand(3, 4))
    assert {value.dtype for value in (scores, *cache.values())} == {torch.float64}
    assert torch.equal(policy(torch.ones(1, 4)), policy.module(torch.ones(1, 4, dtype=torch.float64)))


class Guarded(nn.Module):
    """A perceptron whose forward asks the data a question, so that it cannot be exported; and the same without it."""

    def __init__(self, *, asks=True):
        super().__init__()
        self.first, self.second, self.asks = nn.Linear(4, 8), nn.Linear(8, 3), asks

    def forward(self, x):
        y = torch.tanh(self.first(x))
        if self.asks and float(y.sum()) > 1e9:
            y = y * 2
        return self.second(y)


def eager_and_graph():
    torch.manual_seed(0)
    module = Guarded()
    twin = Guarded(asks=False)
    twin.load_state_dict(module.state_dict())
    eager, graph = (rlm.HookedPolicy(net, torch.rand(3, 4)) for net in (module, twin))
    assert (eager.engine, graph.engine) == ("eager", "graph")
    return eager, graph


def test_gradients_at_what_the_eager_cache_holds_are_the_graphs():
    eager, graph = eager_and_graph()
    obs = torch.rand(5, 4)
    found = []
    for policy in (eager, graph):
        scores, cache = policy.run_with_cache(obs)
        names = [name for name in cache if cache[name].requires_grad]
        slopes = torch.autograd.grad(scores.square().sum(), [cache[name] for name in names])
        found.append(dict(zip(names, slopes, strict=True)))
    assert list(found[0]) == list(found[1])
    for name, slope in found[0].items():
        torch.testing.assert_close(slope, found[1][name], msg=name)


def test_backward_hooks_fire_at_every_point_of_the_eager_engine():
    eager, graph = eager_and_graph()
    obs, found = torch.rand(5, 4), []
    for policy in (eager, graph):
        seen = {}
        for name in policy.hook_dict:
            keep = lambda tensor, hook, seen=seen: seen.__setitem__(hook.name, tensor.clone())  # noqa: E731
            scores = policy.run_with_hooks(obs.clone().requires_grad_(), bwd_hooks=[(name, keep)])
            scores.square().sum().backward()
        found.append(seen)
    assert set(found[0]) == set(eager.hook_dict) == set(found[1])
    for name, slope in found[0].items():
        torch.testing.assert_close(slope, found[1][name], msg=name)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_attribution_patching_on_the_eager_engine_is_that_on_the_graph(direction):
    eager, graph = eager_and_graph()
    clean, corrupt = torch.rand(6, 4), torch.rand(6, 4)
    sites = [rlm.Site("hook_obs"), *(rlm.Site("tanh_0.hook_out", neuron=i) for i in range(8))]
    found = [
        rlm.attribution_patching(
            policy, clean=clean, corrupt=corrupt, sites=sites, direction=direction, repairs=given, exact=True
        )
        for policy, given in ((eager, None), (graph, ()))
    ]
    for name in ("estimate", "patched", "remainder", "clean", "corrupt"):
        assert found[0][name].values == pytest.approx(found[1][name].values, abs=1e-5), name
    assert found[0].attrs["repairs"] == "none"
    with pytest.raises(EngineError, match="needs the traced graph"):
        rlm.attribution_patching(eager, clean=clean, corrupt=corrupt, sites=sites, n_steps=4)


@pytest.mark.parametrize("method", ["integrated_gradients", "saliency"])
def test_captums_methods_run_on_the_eager_engine(method):
    pytest.importorskip("captum")
    eager, graph = eager_and_graph()
    obs = torch.rand(4, 4)
    given = {"baseline": torch.zeros(1, 4)} if method == "integrated_gradients" else {}
    found = [getattr(rlm.attribution, method)(policy, obs, **given) for policy in (eager, graph)]
    assert found[0].attribution.values == pytest.approx(found[1].attribution.values, abs=1e-5)


def test_attribution_works_on_a_mixture_of_experts_and_leaves_out_what_it_cannot_show():
    torch.manual_seed(0)
    obs = torch.randn(16, 4)
    policy = rlm.HookedPolicy(Experts(), obs)
    found = rlm.attribution_patching(policy, clean=obs[:6], corrupt=obs[6:12], sites=["hook_obs"], exact=True)
    chosen = [policy.module.gate(rows).argmax(-1) for rows in (obs[:6], obs[6:12])]
    same = (chosen[0] == chosen[1]).numpy()
    assert same.any()
    assert found.estimate.values[0][same] == pytest.approx((found.patched - found.corrupt).values[0][same], abs=1e-5)


class OneMoreAxisWhenAsked(RowsInTwo):
    """Its layer sees rows of another rank on the branch that the example did not take."""

    def forward(self, x):
        if (x > 10).any():
            return self.head(self.relu(self.inner(x.reshape(-1, 1, 2))).reshape(-1, 10))
        return super().forward(x)


def test_a_value_of_another_rank_than_the_examples_is_shown_and_edited_as_it_is():
    torch.manual_seed(0)
    module = OneMoreAxisWhenAsked()
    policy, obs = rlm.HookedPolicy(module, torch.rand(3, 4)), torch.rand(2, 4) + 10
    assert policy.engine == "eager"
    scores, cache = policy.run_with_cache(obs, ["inner.hook_out"])
    shown = module.inner(obs.reshape(-1, 1, 2))
    assert cache["inner.hook_out"].shape == (4, 1, 5)
    torch.testing.assert_close(cache["inner.hook_out"], shown)
    torch.testing.assert_close(scores, module(obs))
    doubled = policy.run_with_hooks(obs, fwd_hooks=[("inner.hook_out", lambda value, hook: 2 * value)])
    torch.testing.assert_close(doubled, module.head(torch.relu(2 * shown).reshape(-1, 10)))
