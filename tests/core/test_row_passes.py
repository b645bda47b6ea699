"""Rows that decide for themselves: the same bits alone and in any company, each with its own edits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.core.row_edits import RowEdits
from rlmech.nets import EgoAttentionNetwork


def mlp(n_in: int, width: int, n_out: int, act: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(n_in, width), act(), nn.Linear(width, n_out))


class Mixing(nn.Module):
    """Its rows depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x - x.mean(0, keepdim=True))


NETS = {
    "tanh": (lambda: mlp(8, 64, 4, nn.Tanh), True),
    "wide": (lambda: mlp(25, 256, 5, nn.ReLU), True),
    "silu of 30": (lambda: mlp(8, 32, 4, nn.SiLU), True),
    "a head over 25": (lambda: mlp(8, 25, 5, nn.ReLU), False),
    "mixing": (Mixing, False),
}


@pytest.mark.parametrize(("make", "together"), NETS.values(), ids=NETS)
def test_a_row_is_the_same_alone_and_in_any_company(make: Any, together: bool) -> None:
    torch.manual_seed(0)
    net = make()
    first = next(m for m in net.modules() if isinstance(m, nn.Linear)).in_features
    policy = rlm.HookedPolicy(net, torch.rand(2, first))
    obs = torch.randn(600, first)
    scores, values = policy.run_rows(obs, None)
    assert (policy.rows_at_once > 1) == together
    for rows in (slice(0, 1), slice(599, 600), slice(3, 40), slice(7, 300), slice(100, 102)):
        part, own = policy.run_rows(obs[rows], None)
        assert torch.equal(part, scores[rows])
        assert all(torch.equal(own[name], value[rows]) for name, value in values.items())
    shuffled = torch.randperm(600)
    assert torch.equal(policy.run_rows(obs[shuffled])[0], scores[shuffled])
    assert torch.allclose(scores, policy(obs), atol=1e-5) or isinstance(net, Mixing)


def test_a_large_network_runs_one_row_at_a_time() -> None:
    policy = rlm.HookedPolicy(mlp(8, 1 << 17, 4, nn.ReLU), torch.rand(2, 8))
    assert policy.rows_at_once == 1


def test_each_row_gets_its_own_edits_as_if_alone() -> None:
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3), torch.rand(2, 15, 7))
    z = "attention_layer.hook_z"
    shape = policy.point(z).shape[1:]
    edits = [
        rlm.zero_ablation(rlm.Site(z, head=1)),
        rlm.steer(rlm.Site(z, head=2), torch.randn(shape[-1])),
        rlm.mean_ablation(z, reference={z: torch.randn(5, *shape)}),
        rlm.patch(rlm.Site(z, head=[0, 3]), source={z: torch.randn(1, *shape)}),
        rlm.erase(rlm.Site(z, head=0), torch.randn(shape[-1]), mean=torch.randn(shape[-1])),
    ]
    bound = [[(z, edit.bind(policy.point(z)), edit)] for edit in edits]
    plan_of = torch.arange(300) % len(edits)
    rows = RowEdits(bound, plan_of, policy.hook_dict)
    obs = torch.rand(300, 15, 7)
    scores, values = policy.run_rows(obs, z, edits=rows, rows=torch.arange(300))
    for row in (0, 1, 2, 3, 4, 133, 299):
        with policy.edited(edits[row % len(edits)]):
            alone, own = policy.run_rows(obs[row : row + 1], z)
        assert torch.equal(alone[0], scores[row])
        assert torch.equal(own[z][0], values[z][row])
    chosen = torch.tensor([17, 250, 3])
    assert torch.equal(policy.run_rows(obs[chosen], edits=rows, rows=chosen)[0], scores[chosen])


def test_attached_functions_see_one_row() -> None:
    policy = rlm.HookedPolicy(mlp(4, 8, 2, nn.ReLU), torch.rand(2, 4))
    shapes: list[torch.Size] = []
    obs = torch.rand(5, 4)
    plain = policy.run_rows(obs)[0]
    with policy.hooks(fwd_hooks=[("0.hook_out", lambda tensor, hook: shapes.append(tensor.shape))]):
        assert torch.equal(policy.run_rows(obs)[0], plain)
    assert shapes == [(1, 8)] * 5
