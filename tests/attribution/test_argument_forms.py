"""One operation written in several ways: the same numbers, or a refusal in words."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import rlmech as rlm
from rlmech.attribution.affine import local_affine
from rlmech.attribution.regions import region_margins


class Around(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.function = nn.Linear(4, 6), nn.Linear(6, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def around(function: Callable[[Tensor], Tensor]) -> rlm.HookedPolicy:
    """A float64 policy around a function."""
    return rlm.HookedPolicy(Around(function).double(), torch.rand(2, 4, dtype=torch.float64))


def observed(n: int) -> Tensor:
    """A batch of observations."""
    return torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize(
    "function",
    [
        lambda v: torch.max(v, -2 * v),
        lambda v: torch.min(v, -2 * v),
        lambda v: v.max(0.5 * v + 0.1),
        lambda v: torch.maximum(v, torch.zeros((), dtype=v.dtype)),
        lambda v: torch.sub(v, 2 * v, alpha=3),
        lambda v: torch.cumsum(v, dim=-1),
    ],
)
def test_a_map_is_the_policy_however_its_operation_is_written(function: Callable[[Tensor], Tensor], batch: int) -> None:
    policy, x = around(function), observed(batch)
    found = local_affine(policy, x)
    again = (found.jacobian.values * x.numpy()[:, None]).sum(2) + found.offset.values
    assert abs(again - policy(x).detach().numpy()).max() < 1e-10
    slopes = torch.func.vmap(torch.func.jacrev(lambda row: policy.module(row[None])[0]))(x)
    assert abs(found.jacobian.values - slopes.detach().numpy()).max() < 1e-10


@pytest.mark.parametrize("elementwise", [torch.max, torch.min])
def test_a_margin_ends_where_the_larger_of_two_changes(elementwise: Callable[..., Tensor]) -> None:
    policy, x = around(lambda v: elementwise(v, -v)), observed(5)
    first = policy.module.get_submodule("first")
    assert isinstance(first, nn.Linear)
    nearest = (first(x).abs() / first.weight.norm(dim=1)).amin(1)
    assert abs(region_margins(policy, x).margin.values - nearest.detach().numpy()).max() < 1e-10


@pytest.mark.parametrize("mode", ["floor", "trunc"])
@pytest.mark.parametrize("analysis", [local_affine, region_margins])
def test_a_rounding_division_is_refused_in_words(analysis: Callable[..., object], mode: str) -> None:
    policy = around(lambda v: torch.div(v, 0.5, rounding_mode=mode))
    with pytest.raises(rlm.RlmechError, match="not piecewise linear: 'div'"):
        analysis(policy, observed(1))


def test_patching_before_a_softmax_over_actions_is_the_run_with_that_value_put_in() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(-1)).double()
    policy = rlm.HookedPolicy(net, torch.rand(2, 4, dtype=torch.float64), output_kind="logits")
    clean, corrupt = observed(7), observed(7).flip(0)
    result = rlm.activation_patching(
        policy,
        clean=clean,
        corrupt=corrupt,
        sites=policy.sites("2.hook_out", over="neuron"),
        metric=rlm.metrics.action_score(1),
    )
    given = {"denoise": (corrupt, clean), "noise": (clean, corrupt)}[result.attrs.get("direction", "denoise")]
    before, source = (net[:3](value) for value in given)
    for k in range(3):
        mixed = before.clone()
        mixed[:, k] = source[:, k]
        expected = mixed.softmax(-1)[:, 1].detach().numpy()
        assert abs(result.patched.values[k] - expected).max() < 1e-10
