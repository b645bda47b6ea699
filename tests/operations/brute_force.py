"""What each public analysis must give, from the live module alone: one run per job, gradients and differences of it.

Each law takes a policy around `operation_cases.Around` and observations, and asserts; an analysis that is refused in
words is passed over where the caller says that it may be.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import rlmech as rlm
from rlmech.attribution import (
    attribute_actions,
    attribution_patching,
    exact_integrated_gradients,
    local_affine,
    region_margins,
)
from rlmech.circuits import path_expansion
from rlmech.edges import component_graph, edge_attribution, path_patching
from tests.operations.operation_cases import WIDTH, Around

NEURONS = ((0,), (1, 6), tuple(range(WIDTH)))
"""The parts of the first layer's output that are patched: one neuron, two, all."""
SITES = [rlm.Site("first.hook_out", neuron=chosen) for chosen in NEURONS]
READOUTS = {"score": rlm.metrics.action_score(1), "value": rlm.metrics.state_value()}


def tolerance(policy: rlm.HookedPolicy) -> float:
    """Rounding of the policy's dtype, in sums of some dozens of numbers of order one."""
    single = next(policy.module.parameters()).dtype == torch.float32
    return 2e-4 if single else 1e-8  # torch's gradient of hardsigmoid has a sixth in single precision


def network(policy: rlm.HookedPolicy) -> Around:
    """The live module."""
    assert isinstance(policy.module, Around)
    return policy.module


def close(found: object, expected: object, policy: rlm.HookedPolicy, what: str) -> None:
    """Whether numbers agree up to rounding, with what disagrees in words."""
    found, expected = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    np.testing.assert_allclose(
        found, expected, atol=tolerance(policy) * (1 + np.abs(expected).max(initial=0)), err_msg=what
    )


def numbers(value: Tensor) -> np.ndarray:
    """A tensor as an array in double precision."""
    return value.detach().double().numpy()


def readout(policy: rlm.HookedPolicy, h: Tensor, name: str) -> Tensor:
    """A readout of what the first layer puts out, row by row."""
    scores, value = network(policy).rest(h)
    return scores[:, 1] if name == "score" else value[:, 0]


def readouts(policy: rlm.HookedPolicy) -> list[str]:
    """The readouts that a policy has."""
    return ["score", "value"] if network(policy).valued else ["score"]


def mixed(base: Tensor, source: Tensor, chosen: tuple[int, ...]) -> Tensor:
    """One value with some neurons of another."""
    value = base.clone()
    value[:, chosen] = source[:, chosen]
    return value


def one_by_one(run: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Each row in a run of its own."""
    return torch.cat([run(row[None]) for row in rows])


def the_forward_pass(policy: rlm.HookedPolicy, x: Tensor, y: Tensor) -> None:
    net = network(policy)
    scores, cache = policy.run_with_cache(x)
    close(numbers(scores), numbers(net.rest(net.first(x))[0]), policy, "scores")
    close(numbers(cache["first.hook_out"]), numbers(net.first(x)), policy, "first.hook_out")


@torch.no_grad()
def patching_is_one_run_per_job(policy: rlm.HookedPolicy, x: Tensor, y: Tensor) -> None:
    net = network(policy)
    clean, corrupt = net.first(x), net.first(y)
    for name in readouts(policy):
        found = rlm.activation_patching(policy, clean=x, corrupt=y, sites=SITES, metric=READOUTS[name])
        for place, chosen in enumerate(NEURONS):
            rows = mixed(corrupt, clean, chosen)
            close(
                found.patched.values[place],
                numbers(one_by_one(lambda h, n=name: readout(policy, h, n), rows)),
                policy,
                f"{name} {chosen}",
            )


@torch.no_grad()
def patching_features_is_one_run_per_job(policy: rlm.HookedPolicy, x: Tensor, y: Tensor) -> None:
    net = network(policy)
    obs = [rlm.Site("hook_obs", feature=feature) for feature in range(4)]
    found = rlm.activation_patching(policy, clean=x, corrupt=y, sites=obs, metric=READOUTS["score"])
    for feature in range(4):
        rows = net.first(mixed(y, x, (feature,)))
        close(found.patched.values[feature], numbers(readout(policy, rows, "score")), policy, f"feature {feature}")


@torch.no_grad()
def ablation_is_one_run_per_job(policy: rlm.HookedPolicy, x: Tensor, y: Tensor) -> None:
    base, mean = network(policy).first(x), network(policy).first(y).mean(0, keepdim=True)
    for kind, source in (("zero", torch.zeros_like(base)), ("mean", mean.expand_as(base))):
        found = rlm.ablation_sweep(policy, x, sites=SITES, kind=kind, reference=y, metric=READOUTS["score"])
        for place, chosen in enumerate(NEURONS):
            rows = mixed(base, source, chosen)
            close(found.patched.values[place], numbers(readout(policy, rows, "score")), policy, f"{kind} {chosen}")


def estimates_are_gradients_and_certified_ones_exact(policy: rlm.HookedPolicy, x: Tensor, y: Tensor) -> np.ndarray:
    clean, corrupt = network(policy).first(x).detach(), network(policy).first(y).detach()
    shares: list[np.ndarray] = []
    for name in readouts(policy):
        metric = READOUTS[name]
        found = attribution_patching(
            policy, clean=x, corrupt=y, sites=SITES, metric=metric, certificate=True, repairs=()
        )
        leaf = corrupt.clone().requires_grad_()
        measured = readout(policy, leaf, name)
        slope = torch.zeros_like(leaf)
        if measured.requires_grad:
            (slope,) = torch.autograd.grad(measured.sum(), leaf, materialize_grads=True)
        base = numbers(readout(policy, corrupt, name))
        for place, chosen in enumerate(NEURONS):
            expected = (slope * (clean - corrupt))[:, chosen].sum(1)
            close(found.estimate.values[place], numbers(expected), policy, f"estimate of {name} {chosen}")
            patched = numbers(readout(policy, mixed(corrupt, clean, chosen), name))
            close(found.patched.values[place], patched, policy, f"patched {name} {chosen}")
            certified = found.certified.values[place]
            change = found.estimate.values[place] - (patched - base)
            close(change[certified], 0 * change[certified], policy, f"certified {name} {chosen}")
        shares.append(found.certified.values)
    return np.stack(shares)


def integrated_estimates_are_means_of_gradients(policy: rlm.HookedPolicy, x: Tensor, y: Tensor) -> None:
    clean, corrupt = network(policy).first(x).detach(), network(policy).first(y).detach()
    found = attribution_patching(policy, clean=x, corrupt=y, sites=SITES, metric=READOUTS["score"], n_steps=3)
    total = torch.zeros_like(corrupt)
    for share in (1 / 6, 3 / 6, 5 / 6):
        leaf = (corrupt + share * (clean - corrupt)).requires_grad_()
        measured = readout(policy, leaf, "score").sum()
        if measured.requires_grad:
            total += torch.autograd.grad(measured, leaf, materialize_grads=True)[0] / 3
    for place, chosen in enumerate(NEURONS):
        expected = (total * (clean - corrupt))[:, chosen].sum(1)
        close(found.estimate.values[place], numbers(expected), policy, f"{chosen}")


def jacobian(policy: rlm.HookedPolicy, x: Tensor) -> Tensor:
    """That of the live module, row by row, by reverse differentiation."""
    net, rows = network(policy), []
    for action in range(3):
        leaf = x.clone().requires_grad_()
        scores = net.rest(net.first(leaf))[0][:, action].sum()
        rows.append(
            torch.autograd.grad(scores, leaf, materialize_grads=True)[0]
            if scores.requires_grad
            else torch.zeros_like(x)
        )
    return torch.stack(rows, 1)


def differences(policy: rlm.HookedPolicy, x: Tensor, size: float) -> Tensor:
    """That of the live module, by central differences, for what autograd and an analysis would get wrong alike."""
    net = network(policy)
    step = torch.eye(4, dtype=x.dtype) * size
    with torch.no_grad():
        made = [net.rest(net.first(x + s))[0] - net.rest(net.first(x - s))[0] for s in step]
    return torch.stack(made, -1) / (2 * size)


def maps_are_the_policy_on_its_region(policy: rlm.HookedPolicy, x: Tensor, y: Tensor) -> None:
    found = local_affine(policy, x)
    slopes = found.jacobian.values
    close((slopes * numbers(x)[:, None]).sum(2) + found.offset.values, numbers(policy(x)), policy, "J x + c")
    close(slopes, numbers(jacobian(policy, x)), policy, "J")
    margins = region_margins(policy, x).margin.values
    if x.dtype == torch.float64:
        safe = margins > 1e-5
        expected = numbers(differences(policy, x, 1e-6))
        np.testing.assert_allclose(slopes[safe], expected[safe], atol=1e-6, err_msg="J by differences")
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):  # everywhere within the margin, the map is the policy
        way = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        length = np.minimum(margins, 10.0) * 0.999
        moved = x + (way / way.norm(dim=1, keepdim=True) * torch.from_numpy(length)[:, None]).to(x)
        expected = (slopes * numbers(moved)[:, None]).sum(2) + found.offset.values
        close(expected, numbers(policy(moved)), policy, "within the margin")


def terms_sum_to_the_score(policy: rlm.HookedPolicy, x: Tensor, y: Tensor) -> None:
    found = attribute_actions(policy, x)
    total = found.input.sum("feature") + found.bias.sum("source")
    close(total.values, numbers(policy(x)), policy, "sum of the terms")
    close(found.total.values, numbers(policy(x)), policy, "total")
    close(found.input.values, numbers(jacobian(policy, x) * x[:, None]), policy, "input")


def integrals_are_those_of_the_gradient(policy: rlm.HookedPolicy, x: Tensor, y: Tensor) -> None:
    found = exact_integrated_gradients(policy, x, baseline=y)
    n = 400
    share = ((torch.arange(n) + 0.5) / n).to(x.dtype)[:, None, None]
    slopes = jacobian(policy, (y + share * (x - y)).flatten(0, 1))
    expected = numbers(slopes.unflatten(0, (n, -1)).mean(0) * (x - y)[:, None])
    np.testing.assert_allclose(found.attribution.values, expected, atol=0.03 * (1 + np.abs(expected).max(initial=0)))
    close(found.total.values, numbers(policy(x) - policy(y)), policy, "total")
    missing = found.attribution.values.sum(2) - found.total.values
    close(found.completeness_error.values, missing, policy, "completeness_error")


@torch.no_grad()
def a_path_is_the_run_with_its_receiver_put_in(policy: rlm.HookedPolicy, x: Tensor, y: Tensor) -> None:
    clean, corrupt = network(policy).first(x), network(policy).first(y)
    for site, chosen in zip(SITES, NEURONS, strict=True):
        expected = numbers(readout(policy, mixed(corrupt, clean, chosen), "score"))
        try:
            found = path_patching(
                policy, clean=x, corrupt=y, sender=site, receiver="last.hook_out", metric=READOUTS["score"]
            ).patched.values[0]
        except rlm.RlmechError as error:
            if "No path leads" not in str(error):
                raise
            found = numbers(readout(policy, corrupt, "score"))
        close(found, expected, policy, f"{chosen}")


@torch.no_grad()
def no_edge_is_missing(policy: rlm.HookedPolicy, x: Tensor, y: Tensor) -> None:
    """Where a neuron moves the value, the component graph has an edge."""
    if not network(policy).valued:
        return
    units = policy.sites("first.hook_out", over="neuron")
    graph = component_graph(policy, units=units)
    edges = {(graph.units[a], graph.units[b].name) for a, b in graph.edges}
    base, source = network(policy).first(x), network(policy).first(y)
    for place, unit in enumerate(units):
        moved = mixed(base, source, (place,))
        for name, end in (("value", "hook_value"), ("score", "hook_q_values")):
            if bool((readout(policy, moved, name) - readout(policy, base, name)).abs().max() > tolerance(policy)):
                assert (unit, end) in edges, f"no edge from neuron {place} to the {name}"


def edges_are_estimated_by_gradients(policy: rlm.HookedPolicy, x: Tensor, y: Tensor) -> None:
    units = policy.sites("first.hook_out", over="neuron")
    found = edge_attribution(policy, clean=x, corrupt=y, units=units, metric=READOUTS["score"])
    clean, corrupt = network(policy).first(x).detach(), network(policy).first(y).detach()
    leaf = corrupt.clone().requires_grad_()
    measured = readout(policy, leaf, "score").sum()
    slope = torch.zeros_like(leaf)
    if measured.requires_grad:
        (slope,) = torch.autograd.grad(measured, leaf, materialize_grads=True)
    expected = numbers(slope * (clean - corrupt))
    names = [f"first.hook_out neuron={place}" for place in range(WIDTH)]
    senders, receivers = found.sender.values.tolist(), found.receiver.values.tolist()
    for edge, (sender, receiver) in enumerate(zip(senders, receivers, strict=True)):
        if sender in names and receiver == "hook_q_values":
            close(found.estimate.values[edge], expected[:, names.index(sender)], policy, sender)


def repaired_estimates_that_are_certified_are_exact(policy: rlm.HookedPolicy, x: Tensor, y: Tensor) -> None:
    names = ["first.hook_out"]
    for block in policy.attention.values():
        names += [block.names[role] for role in ("q", "k", "v", "z", "pattern")]
    sites = [
        site for name in names for site in (rlm.Site(name), *policy.sites(name, over=policy.hook_dict[name].axes[1]))
    ]
    found = attribution_patching(policy, clean=x, corrupt=y, sites=sites, metric=READOUTS["score"], certificate=True)
    exact = rlm.activation_patching(policy, clean=x, corrupt=y, sites=sites, metric=READOUTS["score"])
    close(found.patched.values, exact.patched.values, policy, "patched")
    remainder = found.remainder.values[found.certified.values]
    close(remainder, 0 * remainder, policy, "certified")
    assert found.certified.values[[site.name.endswith("hook_z") for site in sites]].all()


@torch.no_grad()
def patching_inside_attention_is_a_hooked_run(policy: rlm.HookedPolicy, x: Tensor, y: Tensor) -> None:
    (block,) = policy.attention.values()
    names = [block.names[role] for role in ("q", "k", "v", "attn_scores", "pattern", "z")]
    _, cache = policy.run_with_cache(x, names=names)
    for name in names:
        sites = policy.sites(name, over="head")
        found = rlm.activation_patching(policy, clean=x, corrupt=y, sites=sites, metric=READOUTS["score"])
        axis = policy.hook_dict[name].axes.index("head")
        for head in range(len(sites)):
            put_in = functools.partial(_with_head, source=cache[name], axis=axis, head=head)
            scores = policy.run_with_hooks(y, fwd_hooks=[(name, put_in)])
            close(found.patched.values[head], numbers(scores[:, 1]), policy, f"{name} of head {head}")


def _with_head(value: Tensor, hook: object, *, source: Tensor, axis: int, head: int) -> Tensor:
    value = value.clone()
    value.select(axis, head).copy_(source.select(axis, head))
    return value


def maps_with_frozen_patterns_are_the_policy(policy: rlm.HookedPolicy, x: Tensor, y: Tensor) -> None:
    found = local_affine(policy, x)
    close(
        (found.jacobian.values * numbers(x)[:, None]).sum(2) + found.offset.values,
        numbers(policy(x)),
        policy,
        "J x + c",
    )
    terms = attribute_actions(policy, x)
    total = sum(terms[name].sum([dim for dim in terms[name].dims if dim not in ("batch", "action")])
                for name in terms.data_vars if name != "total")  # fmt: skip
    close(total, numbers(policy(x)), policy, "sum of the terms")
    paths = path_expansion(policy, x)
    close((paths.features + paths.bias).sum("path") + paths.longer, numbers(policy(x)), policy, "sum of the paths")
    integrals = exact_integrated_gradients(policy, x, baseline=y)
    assert abs(integrals.completeness_error).max() < 1e-4 * (1 + abs(integrals.total).max())


@torch.no_grad()
def weights_make_what_heads_read_and_write(policy: rlm.HookedPolicy, x: Tensor, y: Tensor) -> None:
    (block,) = policy.attention.values()
    _, cache = policy.run_with_cache(x)
    tokens = cache["first.hook_out"].view(-1, 3, 4)
    for role, weight, bias in (("q", block.W_Q, block.b_Q), ("k", block.W_K, block.b_K), ("v", block.W_V, block.b_V)):
        made = torch.einsum("bem,hmd->behd", tokens, weight) + (0 if bias is None else bias)
        close(numbers(cache[block.names[role]]), numbers(made), policy, role)
    written = torch.einsum("bqhd,hdm->bqm", cache[block.names["z"]], block.W_O)
    made = written if block.b_O is None else written + block.b_O
    close(numbers(cache[block.names["attn_out"]]), numbers(made), policy, "attn_out")


INSIDE_ATTENTION = (
    weights_make_what_heads_read_and_write,
    repaired_estimates_that_are_certified_are_exact,
    patching_inside_attention_is_a_hooked_run,
    maps_with_frozen_patterns_are_the_policy,
)
"""Laws of policies whose attention is found."""
SWEEPS = (
    the_forward_pass,
    patching_is_one_run_per_job,
    patching_features_is_one_run_per_job,
    ablation_is_one_run_per_job,
    integrated_estimates_are_means_of_gradients,
    no_edge_is_missing,
    edges_are_estimated_by_gradients,
)
"""Laws that hold for every operation."""
BASIC = (the_forward_pass, patching_is_one_run_per_job, estimates_are_gradients_and_certified_ones_exact)
"""Those that a second precision and batch size are tried with."""
TANGENTS = (terms_sum_to_the_score,)
"""Laws that hold at the observation itself, whatever is called exact."""
EXACT = (maps_are_the_policy_on_its_region, terms_sum_to_the_score, integrals_are_those_of_the_gradient)
"""Laws of the analyses that are exact on linear pieces."""
