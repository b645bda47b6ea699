"""The sweep engine: whatever it shares, folds or leaves out, each job is what hooking it by itself gives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.errors import EngineError, SiteError
from rlmech.metrics.measure import bind
from rlmech.nets import ConvolutionalNetwork, EgoAttentionNetwork, MultiLayerPerceptron
from rlmech.patching.sweeps import delta, sweep
from rlmech.patching.sweeps.delta_linear import OneChannel
from rlmech.patching.sweeps.sweep import outputs_of, run_sweep
from tests import networks as nets


def rand(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 0.4


CASES = {
    "mlp": (lambda: nets.mlp(6, 8, 8, 3), lambda n, s: rand(n, 6, seed=s)),
    "tanh": (lambda: nets.mlp(4, 8, 3, activation=nn.Tanh), lambda n, s: rand(n, 4, seed=s)),
    "called twice": (nets.CalledTwice, lambda n, s: rand(n, 4, seed=s)),
    "in place": (nets.InPlace, lambda n, s: rand(n, 4, seed=s)),
    "convolution": (nets.Convolutional, lambda n, s: rand(n, 2, 8, 8, seed=s)),
    "lstm": (nets.DictObservation, lambda n, s: {"track": rand(n, 6, 3, seed=s), "camera": rand(n, 4, seed=s)}),
    "padded transformer": (lambda: nets.Transformer(padding=True), lambda n, s: nets.scenes(n, seed=s)),
    "multi-head": (nets.MultiHead, lambda n, s: nets.scenes(n, seed=s)),
    "fused": (nets.FusedAttention, lambda n, s: nets.scenes(n, seed=s)),
    "scaled queries": (nets.ScaledQueries, lambda n, s: nets.scenes(n, seed=s)),
    "ego attention": (lambda: EgoAttentionNetwork(7, 3), lambda n, s: nets.scenes(n, seed=s)),
    "self attention": (
        lambda: EgoAttentionNetwork(7, 3, self_attention_heads=2),
        lambda n, s: nets.scenes(n, n_entities=5, seed=s),
    ),
    "rl-agents convolution": (
        lambda: ConvolutionalNetwork((2, 8, 8), 3, hidden=(5,)),
        lambda n, s: rand(n, 2, 8, 8, seed=s),
    ),
    "flattening": (
        lambda: MultiLayerPerceptron(105, (8, 8), d_out=3, flatten=True),
        lambda n, s: nets.scenes(n, seed=s),
    ),
}
N_PAIRS = 5


def double(obs):
    return {key: value.double() for key, value in obs.items()} if isinstance(obs, dict) else obs.double()


@pytest.fixture(params=CASES, scope="module")
def case(request):
    torch.manual_seed(0)
    make, example = CASES[request.param]
    policy = rlm.HookedPolicy(make().eval().double(), double(example(3, 0)))
    return policy, double(example(N_PAIRS, 1)), double(example(N_PAIRS, 2))


def jobs_on(policy, name, generator):
    """Whole points, two positions along each axis and one along each pair of axes, at random."""
    point = policy.hook_dict[name]
    axes = point.axes[1:]
    jobs = [(rlm.Site(name),)]
    for over in [(axis,) for axis in axes] + list(itertools.combinations(axes, 2)):
        sites = policy.sites(name, over=over)
        chosen = generator.permutation(len(sites))[: 3 - len(over)]
        jobs += [(sites[i],) for i in chosen]
    if axes and point.size(axes[-1]) > 2:
        jobs.append((rlm.Site(name, **{axes[-1]: (0, 2)}),))
    return jobs


def measured(policy, obs, jobs, source):
    """Hooking each job by itself, the way that everything else must agree with."""
    found = torch.empty(len(jobs), N_PAIRS, dtype=torch.float64)
    for i, job in enumerate(jobs):
        with torch.no_grad(), policy.edited([rlm.patch(site, source=source) for site in job]):
            found[i] = policy(obs)[:, 1]
    return found


def metric_of(policy, clean, corrupt):
    return bind(
        rlm.metrics.action_score(1), policy, clean=outputs_of(policy, clean), corrupt=outputs_of(policy, corrupt)
    )


@pytest.fixture(scope="module")
def hooked_alone(case):
    """Jobs of a case, the run that they read from, and what hooking each by itself gives."""
    policy, clean, corrupt = case
    with torch.no_grad():
        cache = policy.run_with_cache(clean)[1]
        cache = {name: cache[name] for name in policy.hook_dict}
    generator = np.random.default_rng(0)
    names = [name for name, point in policy.hook_dict.items() if name != "hook_value"]
    jobs = [job for name in names for job in jobs_on(policy, name, generator)]
    return jobs, cache, measured(policy, corrupt, jobs, cache)


@pytest.mark.parametrize("few_rows", [0, 10**9], ids=["folded and compressed", "neither"])
def test_every_job_is_what_hooking_it_by_itself_gives(case, hooked_alone, few_rows, monkeypatch):
    policy, clean, corrupt = case
    jobs, cache, expected = hooked_alone
    monkeypatch.setattr(sweep, "FEW_ROWS", few_rows)
    if few_rows == 0:  # and leave out every row that can be left out
        monkeypatch.setattr(delta, "WORTH_SAVING", -1)
        monkeypatch.setattr(delta, "WORTH_COMPRESSING", 2)
    metric = metric_of(policy, clean, corrupt)
    swept = run_sweep(policy, corrupt, jobs, sources=[cache], metric=metric)
    worst = (swept.measured - expected).abs().max(1).values
    assert float(worst.max()) < 1e-9, jobs[int(worst.argmax())]
    unpatched = outputs_of(policy, corrupt).scores[:, 1]
    assert torch.equal(swept.measured[~swept.active], unpatched.expand_as(swept.measured)[~swept.active])
    assert list(swept.schemes) == ["delta"]


def test_patching_a_run_with_itself_changes_no_bit(case):
    policy, clean, _ = case
    with torch.no_grad():
        cache = policy.run_with_cache(clean, list(policy.hook_dict))[1]
    metric = metric_of(policy, clean, clean)
    jobs = [job for name in policy.hook_dict for job in jobs_on(policy, name, np.random.default_rng(0))]
    swept = run_sweep(policy, clean, jobs, sources=[cache], metric=metric)
    assert torch.equal(swept.measured, metric.clean.expand_as(swept.measured))
    assert not swept.active.any()


def test_patching_the_whole_observation_is_the_source_run(case):
    policy, clean, corrupt = case
    names = [name for name in policy.hook_dict if name.startswith("hook_obs")]
    cache = policy.run_with_cache(clean, names)[1]
    swept = run_sweep(
        policy,
        corrupt,
        [tuple(rlm.Site(name) for name in names)],
        sources=[cache],
        metric=metric_of(policy, clean, corrupt),
    )
    assert (swept.measured[0] - outputs_of(policy, clean).scores[:, 1]).abs().max() < 1e-12


def test_sites_on_several_points_are_replaced_together():
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3).double(), nets.scenes(3).double())
    clean, corrupt = nets.scenes(N_PAIRS, seed=1).double(), nets.scenes(N_PAIRS, seed=2).double()
    jobs = [
        (rlm.Site("others_embedding.relu_1.hook_out", entity=e), rlm.Site("attention_layer.hook_z", head=h))
        for e, h in itertools.product(range(3), range(2))
    ]
    jobs.append((rlm.Site("attention_layer.hook_mask"), rlm.Site("attention_layer.hook_k")))
    with torch.no_grad():
        cache = policy.run_with_cache(clean)[1]
    swept = run_sweep(policy, corrupt, jobs, sources=[cache], metric=metric_of(policy, clean, corrupt))
    assert (swept.measured - measured(policy, corrupt, jobs, cache)).abs().max() < 1e-12
    assert list(swept.schemes) == ["suffix"]


def test_each_job_may_have_its_own_source():
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(nets.mlp(4, 8, 3).double(), rand(2, 4).double())
    obs = rand(N_PAIRS, 4).double()
    doses = [{"1.hook_out": torch.full((1, 8), float(dose), dtype=torch.float64)} for dose in range(3)]
    jobs = [(rlm.Site("1.hook_out", neuron=3),)] * 3
    swept = run_sweep(policy, obs, jobs, sources=doses, metric=metric_of(policy, obs, obs), source_of=range(3))
    for dose in range(3):
        wide = {"1.hook_out": doses[dose]["1.hook_out"].expand(N_PAIRS, 8)}
        assert (swept.measured[dose] - measured(policy, obs, jobs[:1], wide)[0]).abs().max() < 1e-12


def test_an_absent_vehicle_is_a_no_op_until_the_mask_is_patched_with_it():
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3).double(), nets.scenes(3).double(), spec=nets.SPEC)
    clean = nets.scenes(N_PAIRS, seed=1).double()
    clean[:, 3, 0] = 1
    corrupt = clean.clone()
    corrupt[:, 3] = 0
    embedding = rlm.Site("others_embedding.relu_1.hook_out", entity="vehicle_3")
    seen = rlm.Site("attention_layer.hook_mask", key="vehicle_3")
    result = rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=[embedding, seen, (embedding, seen)])
    assert result["no_op"][0].all()
    assert (result["patched"][0] == result["corrupt"]).all()
    assert abs(float(result["effect"][2]) - 1) < 1e-9
    assert result["entity"].values.tolist() == ["vehicle_3", "", "vehicle_3"]


def test_a_plan_that_disagrees_with_the_plain_suffix_is_not_used(monkeypatch):
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(nets.mlp(4, 8, 3).double(), rand(2, 4).double())
    clean, corrupt = rand(N_PAIRS, 4, seed=1).double(), rand(N_PAIRS, 4, seed=2).double()
    run = sweep.DeltaPlan.run
    monkeypatch.setattr(sweep.DeltaPlan, "run", lambda self, block: [value + 1 for value in run(self, block)])
    cache = policy.run_with_cache(clean)[1]
    jobs = [(site,) for site in policy.sites("1.hook_out", over="neuron")]
    swept = run_sweep(policy, corrupt, jobs, sources=[cache], metric=metric_of(policy, clean, corrupt))
    assert list(swept.schemes) == ["suffix"]
    assert (swept.measured - measured(policy, corrupt, jobs, cache)).abs().max() < 1e-12


class CentresItsBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x - x.mean(0, keepdim=True))


def test_a_network_that_couples_rows_is_refused():
    policy = rlm.HookedPolicy(CentresItsBatch(), rand(3, 4))
    with pytest.raises(EngineError, match="couples the rows of a batch"):
        rlm.activation_patching(policy, clean=rand(4, 4), corrupt=rand(4, 4, seed=2), sites="layer.hook_out")
    single = rlm.HookedPolicy(CentresItsBatch(), rand(3, 4))
    with pytest.raises(EngineError, match="couples the rows of a batch"):
        rlm.activation_patching(single, clean=rand(1, 4), corrupt=rand(1, 4, seed=2), sites="layer.hook_out")


class Talkative(nn.Module):
    """Scores, a value, and something else that nobody reads."""

    def __init__(self):
        super().__init__()
        self.scores, self.value, self.other = nn.Linear(4, 3), nn.Linear(4, 1), nn.Linear(4, 2)

    def forward(self, x):
        return self.scores(x), self.value(x), self.other(x)


def test_a_site_that_no_output_depends_on_is_refused():
    policy = rlm.HookedPolicy(Talkative(), rand(3, 4), scores=0, value=1)
    with pytest.raises(SiteError, match=r"No output of the policy depends on 'other\.hook_out'"):
        rlm.activation_patching(policy, clean=rand(4, 4), corrupt=rand(4, 4, seed=2), sites="other.hook_out")


class Branching(nn.Sequential):
    """Its control flow depends on its numbers, so that it cannot be exported."""

    def forward(self, x):
        scores = super().forward(x)
        return scores if float(scores.detach().sum()) < float("inf") else -scores


def test_the_eager_engine_gives_the_same():
    torch.manual_seed(0)
    net = nets.mlp(4, 8, 8, 3).double()
    clean, corrupt = rand(N_PAIRS, 4, seed=1).double(), rand(N_PAIRS, 4, seed=2).double()
    graph = rlm.activation_patching(rlm.HookedPolicy(net, clean), clean=clean, corrupt=corrupt)
    policy = rlm.HookedPolicy(Branching(*net), clean)
    assert policy.engine == "eager"
    eager = rlm.activation_patching(policy, clean=clean, corrupt=corrupt)
    assert "forward" in eager.attrs["scheme"]
    np.testing.assert_allclose(eager["patched"], graph["patched"], atol=1e-12)


def test_small_blocks_give_what_large_ones_give(monkeypatch):
    monkeypatch.setattr(delta, "WORTH_SAVING", -1)
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3).double(), nets.scenes(3).double())
    clean, corrupt = nets.scenes(9, seed=1).double(), nets.scenes(9, seed=2).double()
    sites = policy.sites("attention_layer.hook_k", over=("head", "entity"))
    sites += policy.sites("output_layer.relu_0.hook_out", over="neuron")
    large = rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=sites)
    monkeypatch.setattr(sweep, "ELEMENTS_AT_ONCE", {"cpu": 700})
    small = rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=sites)
    np.testing.assert_allclose(small["patched"], large["patched"], atol=1e-12)
    assert (small["no_op"] == large["no_op"]).all()


def test_outputs_out_of_memory_are_run_in_smaller_blocks(monkeypatch):
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(nets.mlp(4, 8, 3).double(), rand(2, 4).double())
    clean, corrupt = rand(40, 4, seed=1).double(), rand(40, 4, seed=2).double()
    whole = rlm.activation_patching(policy, clean=clean, corrupt=corrupt)
    measured, sizes = sweep._Sweep._measured, []

    def scarce(self, plan, block):
        sizes.append(block.n_rows)
        if block.n_rows > 20:
            raise torch.OutOfMemoryError
        return measured(self, plan, block)

    monkeypatch.setattr(sweep._Sweep, "_measured", scarce)
    again = rlm.activation_patching(policy, clean=clean, corrupt=corrupt)
    assert max(sizes) > 20 >= sizes[-1]
    np.testing.assert_allclose(again["patched"], whole["patched"], atol=1e-12)


def test_the_value_head_can_be_measured():
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(nets.Convolutional().eval().double(), rand(2, 2, 8, 8).double())
    clean, corrupt = rand(4, 2, 8, 8, seed=1).double(), rand(4, 2, 8, 8, seed=2).double()
    result = rlm.activation_patching(
        policy,
        clean=clean,
        corrupt=corrupt,
        sites=["value.hook_out", "advantage.hook_out"],
        metric=rlm.metrics.state_value(),
    )
    np.testing.assert_allclose(result["patched"][0], result["clean"], atol=1e-12)
    np.testing.assert_array_equal(result["patched"][1], result["corrupt"])


class TwoConvolutions(nn.Module):
    """Strides, padding and dilation on the way."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2, dilation=2), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Linear(20, 3)

    def forward(self, x):
        return self.head(self.body(x))


def test_a_channel_is_a_part_of_the_next_convolution():
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(TwoConvolutions().double(), rand(2, 2, 8, 8).double())
    clean, corrupt = rand(N_PAIRS, 2, 8, 8, seed=1).double(), rand(N_PAIRS, 2, 8, 8, seed=2).double()
    jobs = [(site,) for site in policy.sites("body.1.hook_out", over="channel")]
    cache = policy.run_with_cache(clean, ["body.1.hook_out"])[1]
    swept = run_sweep(policy, corrupt, jobs, sources=[cache], metric=metric_of(policy, clean, corrupt))
    assert (swept.measured - measured(policy, corrupt, jobs, cache)).abs().max() < 1e-12
    plan = sweep._plans[policy.graph_engine]._last[1][0].plan
    assert any(isinstance(step, OneChannel) for step in plan.steps.values())


def test_a_search_over_ever_other_sites_keeps_a_bounded_number_of_plans():
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(nets.mlp(4, 8, 3).double(), rand(2, 4).double())
    clean, corrupt = rand(N_PAIRS, 4, seed=1).double(), rand(N_PAIRS, 4, seed=2).double()
    cache, metric = policy.run_with_cache(clean)[1], metric_of(policy, clean, corrupt)
    pairs = list(itertools.combinations(range(8), 2))
    name = next(name for name in policy.hook_dict if policy.hook_dict[name].shape[-1] == 8)
    for chosen in [*pairs, pairs[0]]:  # the first was forgotten, and is planned again
        jobs = [(rlm.Site(name, neuron=unit),) for unit in chosen]
        swept = run_sweep(policy, corrupt, jobs, sources=[cache], metric=metric)
        assert (swept.measured - measured(policy, corrupt, jobs, cache)).abs().max() < 1e-12
    assert len(pairs) > sweep.PLANS == len(sweep._plans[policy.graph_engine])


def test_the_same_jobs_are_planned_once_while_others_come_and_go(monkeypatch):
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(nets.mlp(4, 8, 3), rand(2, 4))
    obs, planned = rand(N_PAIRS, 4, seed=1), []
    cache, metric = policy.run_with_cache(obs)[1], metric_of(policy, obs, obs)
    plan = sweep._Sweep._plan
    monkeypatch.setattr(sweep._Sweep, "_plan", lambda self, **how: planned.append(self.jobs) or plan(self, **how))
    monkeypatch.setattr(sweep, "PLANS", 2)
    name = next(name for name in policy.hook_dict if policy.hook_dict[name].shape[-1] == 8)
    for unit in (0, 1, 0, 2, 0, 3, 0):  # a table that forgets the first that came would plan unit 0 again
        run_sweep(policy, obs, [(rlm.Site(name, neuron=unit),)], sources=[cache], metric=metric)
    assert len(planned) == 4


@pytest.mark.parametrize("named", [("gap of two actions", (1, 0)), ("each pair's own gap", ())], ids=lambda n: n[0])
def test_reading_a_metric_off_the_last_layer_gives_what_it_measures_of_the_scores(case, named):
    policy, clean, corrupt = case
    gap = rlm.metrics.action_gap(*named[1])
    plain = rlm.metrics.Metric(name="gap", unit=None, prepare=lambda context: lambda *row: gap.prepare(context)(*row))
    given = {"clean": clean, "corrupt": corrupt, "sites": "auto"}
    read = rlm.activation_patching(policy, metric=gap, **given)
    measured = rlm.activation_patching(policy, metric=plain, **given)
    np.testing.assert_allclose(read["patched"], measured["patched"], atol=1e-10)
    still = read["no_op"].values
    np.testing.assert_array_equal(still, measured["no_op"])
    base = np.broadcast_to(read["corrupt"].values, still.shape)
    np.testing.assert_array_equal(read["patched"].values[still], base[still])
