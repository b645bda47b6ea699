"""Path patching: against hooks set by hand, and by its laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech import testbed
from rlmech.core.site import Site
from rlmech.edges.path import path_patching
from rlmech.errors import EngineError, SiteError
from rlmech.metrics.score_metrics import action_gap
from tests.networks import (
    Branching,
    CalledTwice,
    Convolutional,
    FusedAttention,
    MultiHead,
    ScaledQueries,
    Transformer,
    mlp,
    scenes,
)

ATTENTION = "features_extractor.attention_layer."
EMBEDDING = "features_extractor.others_embedding.relu_1.hook_out"


@pytest.fixture(scope="module")
def ego():
    return rlm.load("zoo:intersection-ego-attention").double()


@pytest.fixture(scope="module")
def pairs():
    return scenes(6).double(), scenes(6, seed=1).double()


def gap(scores, base_scores, source_scores):
    """The action gap of a denoising run, actions fixed from the unpatched runs (source is clean, base corrupt)."""
    better, runner_up = source_scores.argsort(dim=-1, descending=True, stable=True)[:, :2].T
    corrupt = base_scores.argmax(-1)
    worse = torch.where(corrupt != better, corrupt, runner_up)
    return scores.gather(1, better[:, None])[:, 0] - scores.gather(1, worse[:, None])[:, 0]


def by_hooks(policy, source, base, *, sender, receivers, frozen):
    """The definition, with three forward passes and hooks."""
    base_scores, base_cache = policy.run_with_cache(base)
    source_scores, source_cache = policy.run_with_cache(source)

    def put(cache, site):
        return rlm.patch(site, source=cache)

    edits = [put(base_cache, Site(name)) for name in frozen]
    with policy.edited([put(source_cache, sender), *edits]):
        _, received = policy.run_with_cache(base, [site.name for site in receivers])
    with policy.edited([put(received, site) for site in receivers]):
        patched = policy(base)
    return gap(patched, base_scores, source_scores).detach()


IN_ATTENTION = [f"{ATTENTION}{n}" for n in ("hook_q", "hook_k", "hook_v", "hook_attn_scores", "hook_pattern", "hook_z")]


@pytest.mark.parametrize(
    ("sender", "receivers", "through", "frozen"),
    [
        (Site(f"{ATTENTION}hook_z", head=2), [Site("q_net.1.hook_out")], (), []),
        (
            Site("features_extractor.ego_embedding.relu_1.hook_out"),
            [Site("q_net.1.hook_out")],
            (),
            IN_ATTENTION,
        ),
        (Site(EMBEDDING, entity=3), [Site(f"{ATTENTION}hook_z")], ("*.hook_v",), [f"{ATTENTION}hook_pattern"]),
        (
            Site(EMBEDDING, entity=3),
            [Site(f"{ATTENTION}hook_z", head=1)],
            ("*.hook_k",),
            [f"{ATTENTION}hook_v"],
        ),
        (
            Site("hook_obs", entity=4),
            [Site(f"{ATTENTION}hook_k", head=1), Site(f"{ATTENTION}hook_v", head=1)],
            (),
            [],
        ),
        (Site("hook_obs", feature=0), [Site(f"{ATTENTION}hook_mask")], (), []),
        (Site(f"{ATTENTION}hook_q"), [Site("hook_q_values")], (), []),
    ],
)
def test_a_path_does_what_hooks_set_by_hand_do(ego, pairs, sender, receivers, through, frozen):
    clean, corrupt = pairs
    result = path_patching(ego, clean=clean, corrupt=corrupt, sender=sender, receiver=receivers, through=through)
    by_hand = by_hooks(ego, clean, corrupt, sender=sender, receivers=receivers, frozen=frozen)
    np.testing.assert_allclose(result.patched.values[0], by_hand.numpy(), atol=1e-12)


NETWORKS = {
    "twice": (CalledTwice(), (4,), "0", "head.hook_out"),
    "self-attention": (Transformer(padding=True), None, "", ""),
    "multi-head": (MultiHead(), None, "", ""),
    "fused": (FusedAttention(), None, "", ""),
    "matrices": (ScaledQueries(), None, "", ""),
    "conv": (Convolutional(), (2, 8, 8), "", ""),
}


def policy_and_pairs(name):
    torch.manual_seed(0)
    net, shape, *_ = NETWORKS[name]
    net = net.double().eval()
    clean = scenes(4).double() if shape is None else torch.randn(4, *shape, dtype=torch.float64)
    corrupt = scenes(4, seed=1).double() if shape is None else torch.randn(4, *shape, dtype=torch.float64)
    return rlm.HookedPolicy(net, clean), clean, corrupt


@pytest.mark.parametrize("name", NETWORKS)
def test_with_every_point_free_the_whole_observation_gives_the_source_run(name):
    policy, clean, corrupt = policy_and_pairs(name)
    result = path_patching(
        policy, clean=clean, corrupt=corrupt, sender="hook_obs", receiver=policy_output(policy), through="*"
    )
    np.testing.assert_allclose(result.patched[0], result.clean, atol=1e-10)


def policy_output(policy):
    return next(name for name, point in policy.hook_dict.items() if point.kind == "output")


@pytest.mark.parametrize("name", ["self-attention", "fused", "matrices"])
def test_paths_through_queries_keys_and_values_are_those_of_hooks(name):
    policy, clean, corrupt = policy_and_pairs(name)
    block = next(iter(policy.attention.values()))
    sender = Site("hook_obs", entity=2)
    result = path_patching(
        policy, clean=clean, corrupt=corrupt, sender=sender, receiver=block.names["z"], through=[block.names["v"]]
    )
    frozen = [block.names["pattern"]]
    by_hand = by_hooks(policy, clean, corrupt, sender=sender, receivers=[Site(block.names["z"])], frozen=frozen)
    np.testing.assert_allclose(result.patched.values[0], by_hand.numpy(), atol=1e-10)


def test_noise_of_one_pair_is_denoise_of_the_other(ego, pairs):
    clean, corrupt = pairs
    sites = ego.sites(f"{ATTENTION}hook_z", over="head")
    arguments = {"sender": sites, "receiver": "q_net.1.hook_out", "metric": action_gap("FASTER", "SLOWER")}
    there = path_patching(ego, clean=clean, corrupt=corrupt, direction="noise", **arguments)
    back = path_patching(ego, clean=corrupt, corrupt=clean, direction="denoise", **arguments)
    np.testing.assert_array_equal(there.patched, back.patched)


def test_a_run_patched_with_itself_is_unchanged(ego, pairs):
    clean, _ = pairs
    sites = ego.sites(f"{ATTENTION}hook_z", over="head")
    result = path_patching(ego, clean=clean, corrupt=clean, sender=sites, receiver="q_net.1.hook_out")
    np.testing.assert_allclose(result.patched, np.broadcast_to(result.clean, result.patched.shape), atol=1e-12)
    assert (result.effect == 0).all()
    assert result.tiny_denominator.all()


def test_in_a_chain_the_path_is_the_whole_patch():
    torch.manual_seed(0)
    clean, corrupt = torch.randn(2, 5, 4, dtype=torch.float64)
    policy = rlm.HookedPolicy(mlp(4, 6, 6, 3).double(), clean)
    sites = policy.sites("1.hook_out", over="neuron")
    path = path_patching(policy, clean=clean, corrupt=corrupt, sender=sites, receiver="3.hook_out")
    whole = rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=sites)
    np.testing.assert_allclose(path.patched, whole.patched, atol=1e-12)


def test_receivers_one_after_the_other_are_reached_once():
    """The second receiver, reached past the first one only, follows it freely instead of being held at the base run."""
    torch.manual_seed(0)
    clean, corrupt = torch.randn(2, 5, 4, dtype=torch.float64)
    policy = rlm.HookedPolicy(mlp(4, 6, 6, 3).double(), clean)
    arguments = {"clean": clean, "corrupt": corrupt, "sender": "hook_obs"}
    both = path_patching(policy, receiver=["1.hook_out", "3.hook_out"], **arguments)
    first = path_patching(policy, receiver=["1.hook_out"], **arguments)
    np.testing.assert_allclose(both.patched, first.patched, atol=1e-12)


def test_a_receiver_on_the_way_to_another_is_held_meanwhile(ego, pairs):
    """The later receiver hears the sender past the earlier one only: through the heads that are not the earlier one."""
    clean, corrupt = pairs
    values, z, layer = Site(f"{ATTENTION}hook_v"), Site(f"{ATTENTION}hook_z", head=1), Site("q_net.1.hook_out")
    result = path_patching(ego, clean=clean, corrupt=corrupt, sender=values, receiver=[z, layer])
    source_scores, source = ego.run_with_cache(clean)
    base_scores, base = ego.run_with_cache(corrupt)
    with ego.edited([rlm.patch(values, source=source)]):
        _, first = ego.run_with_cache(corrupt, [z.name])
    with ego.edited([rlm.patch(values, source=source), rlm.patch(z, source=base)]):
        _, second = ego.run_with_cache(corrupt, [layer.name])
    with ego.edited([rlm.patch(z, source=first), rlm.patch(layer, source=second)]):
        expected = gap(ego(corrupt), base_scores, source_scores).detach()
    np.testing.assert_allclose(result.patched[0], expected, atol=1e-12)
    assert np.abs(result.patched[0] - result.clean).max() > 1e-3


def test_senders_that_reach_the_receiver_are_chosen_with_auto(ego, pairs):
    clean, corrupt = pairs
    result = path_patching(ego, clean=clean, corrupt=corrupt, sender="auto", receiver="q_net.1.hook_out")
    assert result.sizes["site"] == 5  # four heads, and the ego's embedding past the attention
    assert "hook_pattern" in result.attrs["frozen"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sender": "q_net.1.hook_out", "receiver": "hook_obs"}, "after its receiver"),
        ({"sender": f"{ATTENTION}hook_k", "receiver": f"{ATTENTION}hook_v"}, "No path leads"),
        ({"sender": f"{ATTENTION}hook_k", "receiver": Site(f"{ATTENTION}hook_k", head=1)}, "overlap"),
        ({"sender": f"{ATTENTION}hook_k", "receiver": "q_net.1.hook_out", "through": "*.hook_v"}, "runs through"),
        ({"sender": f"{ATTENTION}hook_k", "receiver": "q_net.9.hook_out"}, "q_net.9"),
        ({"sender": EMBEDDING, "receiver": f"{ATTENTION}hook_z"}, r"through=\["),
        ({"sender": Site(EMBEDDING, entity=99), "receiver": f"{ATTENTION}hook_z"}, "99"),
    ],
)
def test_a_path_that_is_none_is_refused_with_the_reason(ego, pairs, arguments, message):
    with pytest.raises(SiteError, match=message):
        path_patching(ego, clean=pairs[0], corrupt=pairs[1], **arguments)


def test_without_a_graph_it_says_so():
    policy = rlm.HookedPolicy(Branching(), torch.rand(1, 4))
    with pytest.raises(EngineError, match="traced graph"):
        path_patching(
            policy, clean=torch.rand(2, 4), corrupt=torch.rand(2, 4), sender="hook_obs", receiver="head.hook_out"
        )


def test_rows_that_depend_on_each_other_are_refused():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    policy = rlm.HookedPolicy(net, torch.rand(3, 4)).train()
    with pytest.raises(EngineError, match=r"policy.eval"):
        path_patching(
            policy, clean=torch.rand(2, 4), corrupt=torch.rand(2, 4), sender="0.hook_out", receiver="3.hook_out"
        )


def test_direct_paths_of_a_planted_circuit_are_those_of_its_equations():
    """Every unit to the scores directly: the single edge, by the equations, and nothing that runs through others."""
    known = testbed.random_circuit(1, n_pairs=8)
    metric = action_gap(known.better, known.worse)
    senders = [unit for unit in known.hidden if (unit, known.outputs[0]) in known.all_edges]
    result = path_patching(
        known.policy, clean=known.clean, corrupt=known.corrupt, sender=senders, receiver="hook_q_values", metric=metric
    )
    for row, sender in enumerate(senders):
        edges = [(sender, output) for output in known.outputs if (sender, output) in known.all_edges]
        scores = testbed.brute_force(known, base=known.corrupt, other=known.clean, edges=edges)
        np.testing.assert_allclose(result.patched[row], scores[:, 0] - scores[:, 1], atol=1e-10, err_msg=repr(sender))
    assert (np.abs(result["change"]) > 1e-3).any()


def test_pairs_in_chunks_are_pairs_at_once(ego, pairs, monkeypatch):
    clean, corrupt = pairs
    arguments = {"clean": clean, "corrupt": corrupt, "sender": "auto", "receiver": "q_net.1.hook_out"}
    at_once = path_patching(ego, **arguments)
    monkeypatch.setattr("rlmech.edges.path.ROWS_AT_ONCE", 4)
    np.testing.assert_allclose(path_patching(ego, **arguments).patched, at_once.patched, atol=1e-12)
