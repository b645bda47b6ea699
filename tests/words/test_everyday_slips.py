"""Everyday slips get words that name what to write, or simply work."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech.errors import (
    ArgumentError,
    ConfigError,
    EditError,
    HookError,
    MetricError,
    RlmechError,
    SiteError,
    UnknownNameError,
    nearest,
)
from rlmech.habits import OF_CACHE, OF_HOOK_POINT, OF_PACKAGE, OF_POLICY
from rlmech.nets import EgoAttentionNetwork
from tests import networks

Z = "attention_layer.hook_z"


@functools.cache
def ego() -> rlm.HookedPolicy:
    torch.manual_seed(0)
    return rlm.HookedPolicy(EgoAttentionNetwork(7, 3), states(), spec=networks.SPEC)


def states(n: int = 4) -> torch.Tensor:
    return networks.scenes(n, n_entities=15, seed=1)


@functools.cache
def perceptron() -> rlm.HookedPolicy:
    torch.manual_seed(0)
    return rlm.HookedPolicy(networks.mlp(4, 5, 2), torch.rand(2, 4))


# ---- what simply works


def test_one_edit_stands_for_a_list_of_one():
    with ego().edited(rlm.zero_ablation(Z)):
        alone = ego()(states())
    with ego().edited([rlm.zero_ablation(Z)]):
        assert torch.equal(ego()(states()), alone)


@pytest.mark.parametrize("make", [rlm.mean_ablation, rlm.resample_ablation])
def test_observations_as_a_reference_are_what_their_cache_is(make):
    obs = states(9)
    _, cache = ego().run_with_cache(obs)
    with ego().edited(make(Z, reference=cache)):
        wanted = ego()(states())
    for given in (obs, obs.numpy()):
        with ego().edited(make(Z, reference=given)):
            assert torch.equal(ego()(states()), wanted)


def test_a_reference_is_run_unedited_inside_another_edit():
    with ego().edited(rlm.mean_ablation(Z, reference=states())):
        wanted = ego()(states())
    with ego().edited(rlm.zero_ablation(Z)), ego().edited(rlm.mean_ablation(Z, reference=states())):
        assert torch.equal(ego()(states()), wanted)


def test_a_patch_from_observations_gives_their_run():
    with ego().edited(rlm.patch("hook_obs", source=states(2))):
        torch.testing.assert_close(ego()(torch.zeros(2, 15, 7)), ego()(states(2)))


def test_an_edit_of_observations_is_not_bound_without_a_policy():
    with pytest.raises(EditError, match="no policy has run on yet"):
        rlm.mean_ablation(Z, reference=states()).bind(ego().point(Z))


def test_a_glob_that_matches_one_activation_reads_it():
    _, cache = ego().run_with_cache(states())
    assert torch.equal(cache["*hook_pattern"], cache["attention_layer.hook_pattern"])
    assert cache.stack("*.hook_pattern").shape == (1, *cache["*hook_pattern"].shape)
    with pytest.raises(SiteError, match="matches") as caught:
        cache["*hook_out"]
    assert "cache.stack('*hook_out')" in caught.value.fix


def test_the_automatic_sites_are_those_of_a_sweep():
    result = rlm.ablation_sweep(ego(), states())
    assert len(ego().sites("auto")) == result.sizes["site"]


@pytest.mark.parametrize("example", [torch.rand(2, 4).double(), np.zeros((2, 4)), {"x": np.zeros((2, 4))}])
def test_a_float64_example_opens_a_float32_network(example):
    class Keyed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = networks.mlp(4, 5, 2)

        def forward(self, obs):
            return self.body(obs["x"] if isinstance(obs, dict) else obs)

    policy = rlm.HookedPolicy(Keyed(), example)
    assert policy(example).dtype == torch.float32
    assert rlm.HookedPolicy(Keyed().double(), example)(example).dtype == torch.float64


@pytest.mark.parametrize("action", ["FASTER", 2, np.int64(2)])
def test_an_action_goes_by_name_or_number_in_metrics_attributions_and_circuits(action):
    obs, options = states(), {"better": action, "worse": "SLOWER"}
    by_name = {"better": "FASTER", "worse": "SLOWER"}
    for analysis in (rlm.attribute_actions, rlm.circuits.path_expansion):
        np.testing.assert_array_equal(analysis(ego(), obs, **options).total, analysis(ego(), obs, **by_name).total)
    gap = rlm.ablation_sweep(ego(), obs, metric=rlm.metrics.action_gap(action, "SLOWER"))
    assert gap.equals(rlm.ablation_sweep(ego(), obs, metric=rlm.metrics.action_gap("FASTER", "SLOWER")))


def test_one_action_by_its_name_and_its_number_is_no_gap():
    obs = states()
    for analysis in (
        lambda: rlm.attribute_actions(ego(), obs, better="FASTER", worse=2),
        lambda: rlm.circuits.path_expansion(ego(), obs, better=2, worse="FASTER"),
        lambda: rlm.ablation_sweep(ego(), obs, metric=rlm.metrics.action_gap("FASTER", 2)),
    ):
        with pytest.raises(RlmechError, match="between two actions"):
            analysis()


# ---- what gets words

SLIPS = {
    "a metric as a string": (
        lambda: rlm.ablation_sweep(ego(), states(), metric="flip"),
        MetricError,
        "rlm.metrics.action_flip()",
    ),
    "a metric without brackets": (
        lambda: rlm.ablation_sweep(ego(), states(), metric=rlm.metrics.action_flip),
        MetricError,
        "rlm.metrics.action_flip()",
    ),
    "pairs by place": (
        lambda: rlm.activation_patching(ego(), states(), states()),
        ArgumentError,
        "activation_patching(policy, clean=..., corrupt=...)",
    ),
    "a half pair": (lambda: rlm.activation_patching(ego(), clean=states()), ArgumentError, "corrupt=..."),
    "observations where the block stands": (lambda: rlm.circuits.qk_circuit(ego(), states()), ConfigError, "obs=..."),
    "names_filter": (
        lambda: ego().run_with_cache(states(), names_filter="*"),
        ArgumentError,
        "write names=...",
    ),
    "return_type": (
        lambda: ego().run_with_cache(states(), return_type=None),
        ArgumentError,
        "the scores are always returned",
    ),
    "a keyword with a slip": (lambda: rlm.ablation_sweep(ego(), states(), site=Z), ArgumentError, "sites=..."),
    "what is no edit": (lambda: ego().edited(["zero"]).__enter__(), EditError, "rlm.zero_ablation(site)"),
    "a hook of one argument": (
        lambda: ego().run_with_hooks(states(), fwd_hooks=[(Z, lambda value: value)]),
        HookError,
        "lambda tensor, hook",
    ),
    "TransformerLens's hook name": (
        lambda: ego().run_with_hooks(states(), fwd_hooks=[("blocks.0.attn.hook_z", lambda value, hook: value)]),
        SiteError,
        Z,
    ),
    "TransformerLens's way to a pattern": (
        lambda: ego().run_with_cache(states())[1]["pattern", 0],
        SiteError,
        "attention_layer.hook_pattern",
    ),
    "a name without its path": (
        lambda: ego().run_with_cache(states())[1]["hook_pattern"],
        SiteError,
        "attention_layer.hook_pattern",
    ),
    "reset_hooks": (lambda: ego().reset_hooks(), UnknownNameError, "policy.hooks(fwd_hooks="),
    "the network's own module": (lambda: ego().attention_layer, UnknownNameError, "policy.module.attention_layer"),
    "from_pretrained of the class": (lambda: rlm.HookedPolicy.from_pretrained("gpt2"), UnknownNameError, "rlm.load("),
    "load of the class": (lambda: rlm.HookedPolicy.load("policy.zip"), UnknownNameError, "rlm.load("),
    "a slip in a constructor's name": (lambda: rlm.HookedPolicy.from_sb, UnknownNameError, "from_sb3"),
    "the layer of a hook": (
        lambda: ego().run_with_hooks(states(), fwd_hooks=[(Z, lambda value, hook: value * hook.layer())]),
        UnknownNameError,
        "hook.name",
    ),
    "the context of a hook": (lambda: ego().hook_dict[Z].ctx, UnknownNameError, "kept[hook.name] = tensor"),
    "set_use_attn_result": (lambda: ego().set_use_attn_result(True), UnknownNameError, "policy.hook_dict"),
    "stack_head_results": (
        lambda: ego().run_with_cache(states())[1].stack_head_results(),
        UnknownNameError,
        "hook_result",
    ),
    "get_act_patch": (lambda: rlm.get_act_patch_attn_head_z_all_pos, UnknownNameError, "rlm.activation_patching("),
    "get_act_name": (lambda: rlm.get_act_name("z", 0), UnknownNameError, "policy.hook_dict"),
    "logit_lens": (lambda: rlm.logit_lens, UnknownNameError, "rlm.attribution.action_lens"),
    "a name of another module": (lambda: rlm.steering_sweep, UnknownNameError, "rlm.patching.steering_sweep"),
    "a name with a slip": (lambda: rlm.steering_swep, UnknownNameError, "rlm.patching.steering_sweep"),
    "a tensor as a pattern to draw": (lambda: rlm.plot.attention(torch.rand(4, 1, 15)), ConfigError, "xr.DataArray"),
    "a figure as a section": (lambda: rlm.plot.page([object()], "x.html"), ConfigError, "rlm.plot.Section"),
    "an action's name with a slip": (
        lambda: rlm.attribute_actions(ego(), states(), better="FASTR"),
        MetricError,
        "did you mean 'FASTER'?",
    ),
    "True as an action": (lambda: rlm.attribute_actions(ego(), states(), better=True), MetricError, "policy.spec"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_names_what_to_write(slip):
    call, kind, fix = SLIPS[slip]
    with pytest.raises(kind) as caught:
        call()
    assert fix in caught.value.fix


def test_an_error_inside_a_function_is_not_taken_for_a_wrong_call():
    def broken(value, hook):
        return value + "text"

    with pytest.raises(TypeError, match="unsupported operand") as caught:
        ego().run_with_hooks(states(), fwd_hooks=[(Z, broken)])
    assert not isinstance(caught.value, RlmechError)


@pytest.mark.parametrize(
    ("owner", "habits"),
    [
        ("policy", OF_POLICY),
        ("class", OF_POLICY),
        ("hook point", OF_HOOK_POINT),
        ("cache", OF_CACHE),
        ("package", OF_PACKAGE),
    ],
)
def test_no_habit_hides_a_name_that_is_there(owner, habits):
    subject = {
        "policy": ego(),
        "class": rlm.HookedPolicy,
        "hook point": ego().point(Z),
        "cache": ego().run_with_cache(states())[1],
        "package": rlm,
    }[owner]
    assert [name for name in habits if hasattr(subject, name)] == []


def test_what_asks_whether_a_name_is_there_gets_no():
    assert not hasattr(ego(), "nothing_of_that_name")
    assert not hasattr(rlm.HookedPolicy, "nothing_of_that_name")
    assert not hasattr(ego().point(Z), "nothing_of_that_name")
    assert not hasattr(ego().run_with_cache(states())[1], "nothing_of_that_name")
    assert not hasattr(rlm, "nothing_of_that_name")


@pytest.mark.parametrize(
    ("given", "known", "wanted"),
    [
        ("hook_pattern", ["hook_q_values", "hook_obs", "a.b.hook_pattern"], "a.b.hook_pattern"),
        ("hook_patern", ["a.hook_attn_out", "a.hook_pattern"], "a.hook_pattern"),
        ("blocks.0.attn.hook_z", ["attention_layer.hook_z", "attention_layer.hook_q"], "attention_layer.hook_z"),
        ("slower", ["FASTER", "SLOWER"], "SLOWER"),
    ],
)
def test_the_nearest_name_is_the_one_meant(given, known, wanted):
    assert nearest(given, known)[0] == wanted


def test_a_name_that_is_near_nothing_gets_no_advice():
    assert nearest("hook_pattern", ["hook_q_values", "hook_obs", "1.hook_out"]) == []


def test_a_cache_is_a_reference_of_a_lens_as_its_observations_are():
    obs = torch.rand(12, 4)
    lens = functools.partial(rlm.attribution.action_lens, perceptron(), torch.rand(3, 4))
    by_cache = lens(reference=perceptron().run_with_cache(obs)[1])
    np.testing.assert_array_equal(by_cache.r2, lens(reference=obs).r2)
    with pytest.raises(RlmechError, match="does not hold the observations"):
        lens(reference=perceptron().run_with_cache(obs, "1.hook_out")[1])
