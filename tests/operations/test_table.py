"""The table of operations: each record is met by a case of the matrix, and what has none is trusted in nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rlmech as rlm
from rlmech.attribution import attribution_patching, local_affine, region_margins
from rlmech.core.operations.reading import behaviour, record_of
from rlmech.core.operations.record import UNKNOWN, Operation, Written
from rlmech.core.operations.table import known, names_where
from rlmech.core.tracing import trace
from tests.operations.brute_force import network
from tests.operations.operation_cases import WIDTH, Around, rows
from tests.operations.test_matrix import CASES, has_value, wrapped

MADE_BY_RLMECH = {"head_result", "head_sum", "causal_mask", "_safe_softmax"}
ONLY_DECOMPOSED = {
    "_adaptive_avg_pool2d", "_log_softmax", "_native_batch_norm_legit_no_training", "_softmax", "_to_copy",
    "_unsafe_view", "constant_pad_nd", "convolution", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "native_group_norm", "native_layer_norm", "reflection_pad1d", "reflection_pad2d", "replication_pad1d",
    "replication_pad2d",
}  # fmt: skip
"""What torch puts in the place of others where it writes modules that change values in place."""


RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"}
"""Of which a record says only what kind of hook point they are."""


def unnamed(name: str) -> Operation:
    """What a record says, but for what the operation is called."""
    record = known(name)
    return replace(record, name="", curve=record.curve and "a curve", written=Written())


def test_each_record_has_a_case_in_the_matrix_or_says_what_one_that_has_says() -> None:
    met = {
        node.op
        for group, name in CASES
        for node in wrapped(group, name, valued=has_value(group, name)).graph_engine.graph.nodes
    }
    tried = {unnamed(name) for name in met}
    rest = names_where(lambda record: True) - met - MADE_BY_RLMECH - ONLY_DECOMPOSED - RECURRENT
    assert not {name for name in rest if unnamed(name) not in tried}


def test_an_operation_without_a_record_is_neither_exact_nor_certified_and_moves_anything() -> None:
    assert known("lgamma") is UNKNOWN
    policy = rlm.HookedPolicy(Around(lambda v: torch.lgamma(v.abs() + 1), valued=False), torch.rand(2, 4)).double()
    x, y = torch.rand(2, 5, 4, dtype=torch.float64)
    for analysis in (local_affine, region_margins):
        with pytest.raises(rlm.RlmechError, match="'lgamma'"):
            analysis(policy, x)
    found = attribution_patching(policy, clean=x, corrupt=y, sites=[rlm.Site("first.hook_out")], certificate=True)
    assert not found.certified.any()


@pytest.mark.parametrize(
    "cut",
    [
        lambda v: v.half().to(v.dtype),
        lambda v: v.to(dtype=torch.bfloat16).type_as(v),
        lambda v: v.sum(1, keepdim=True, dtype=torch.float16).to(v.dtype),
    ],
    ids=["half", "bfloat16", "a sum"],
)
def test_numbers_that_are_cut_to_16_bits_on_the_way_are_not_called_exact(cut: Callable[[Tensor], Tensor]) -> None:
    policy = rlm.HookedPolicy(Around(cut, valued=False), torch.rand(2, 4))
    x, y = torch.rand(2, 5, 4)
    for analysis in (local_affine, region_margins, rlm.attribute_actions):
        with pytest.raises(rlm.RlmechError, match="bends between gates"):
            analysis(policy, x)
    found = attribution_patching(policy, clean=x, corrupt=y, sites=[rlm.Site("first.hook_out")], certificate=True)
    assert not found.certified.any()


def test_what_stands_in_a_region_of_autocast_or_no_grad_is_in_the_graph() -> None:
    class Regions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                hidden = self.a(x).relu()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                scores = self.b(hidden)
            return scores.float() + self.b(hidden)

    net, x = Regions(), torch.rand(5, 4)
    policy = rlm.HookedPolicy(net, x)
    assert policy.engine == "graph"
    torch.testing.assert_close(policy(x), net(x))


@pytest.mark.parametrize("step", [lambda v: v // 0.5, lambda v: torch.heaviside(v, torch.ones_like(v))])
def test_a_step_of_which_torch_knows_no_derivative_has_the_gradient_zero(step: Callable[[Tensor], Tensor]) -> None:
    policy = rlm.HookedPolicy(Around(lambda v: v + step(v), valued=False), torch.rand(2, 4)).double()
    x, y = torch.rand(2, 5, 4, dtype=torch.float64)
    site, metric = rlm.Site("first.hook_out"), rlm.metrics.action_score(1)
    found = attribution_patching(policy, clean=x, corrupt=y, sites=[site], metric=metric, certificate=True)
    net = network(policy)
    change = (net.first(x) - net.first(y)) @ net.last.weight[1]
    np.testing.assert_allclose(found.estimate.values[0], change.detach().numpy(), atol=1e-12)
    np.testing.assert_allclose(found.patched.values[0], policy(x)[:, 1].detach().numpy(), atol=1e-12)


class Named(nn.Module):
    """One function of `[batch 12]`, between nothing."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda v: torch.div(v, 0.5, rounding_mode="floor"), "unknown"),
        (lambda v: torch.div(v, 0.5, rounding_mode=None), "affine"),
        (lambda v: v * v, "product"),
        (lambda v: v.cumsum(0), "unknown"),
        (lambda v: v.cumsum(1), "affine"),
        (lambda v: v - v.mean(0), "unknown"),
        (lambda v: v.softmax(0), "unknown"),
        (lambda v: v.amax(0, keepdim=True) + v, "unknown"),
        (lambda v: torch.zeros_like(v), "fixed"),
        (lambda v: v.clamp(0, 1), "gate"),
        (torch.tanh, "curve"),
    ],
)
def test_a_call_is_what_its_record_says_only_in_the_forms_that_it_describes(function: object, expected: str) -> None:
    graph = trace(Named(function), torch.rand(3, WIDTH))
    node = next(node for node in graph.nodes if graph.inputs[0] in node.inputs() and node.op != "add")
    assert behaviour(node, {graph.inputs[0]}) == expected


def test_a_scaled_product_knows_its_scales() -> None:
    graph = trace(Named(lambda v: torch.baddbmm(rows(v), rows(v), rows(v).mT @ rows(v), beta=2)), torch.rand(3, WIDTH))
    node = next(node for node in graph.nodes if node.op == "baddbmm")
    assert record_of(node) is not UNKNOWN
    added, first, second = node.args
    assert behaviour(node, {added}) == behaviour(node, {second}) == "affine"
    assert behaviour(node, {first, second}) == "product"
