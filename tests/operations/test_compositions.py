"""Operations one after the other, drawn at random: what holds for each holds for what they come to."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rlmech as rlm
from tests.operations import brute_force as laws
from tests.operations.operation_cases import AFFINE, ATTENTION, BENDING, GATES, WIDTH, Around
from tests.operations.test_matrix import NOT_ALWAYS_CERTIFIED, drawn, right_or_refused

PIECES = AFFINE | GATES
ALL = PIECES | BENDING | ATTENTION


class Chain(nn.Module):
    """Functions one after the other, a fixed matrix behind each; `skip` adds what each is given."""

    def __init__(self, names: list[str], *, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.functions = [ALL[name] for name in names]
        self.modules_among_them = nn.ModuleList(f for f in self.functions if isinstance(f, nn.Module))
        generator = torch.Generator().manual_seed(len(names))
        sizes = [function(torch.ones(2, WIDTH)).flatten(1).shape[1] for function in self.functions]
        for place, size in enumerate(sizes):
            matrix = torch.randn(size, WIDTH, generator=generator, dtype=torch.float64) / size**0.5
            self.register_buffer(f"matrix_{place}", matrix.float())

    def forward(self, v: Tensor) -> Tensor:
        for place, function in enumerate(self.functions):
            made = function(v).flatten(1) @ self.get_buffer(f"matrix_{place}")
            v = v + made if self.skip else made
        return v


def chain_of(names: list[str], *, skip: bool) -> rlm.HookedPolicy:
    """A policy around a chain, in double precision, with a value head."""
    torch.manual_seed(1)
    net = Around(Chain(names, skip=skip).float(), valued=True).eval()
    return rlm.HookedPolicy(net, torch.rand(2, 4)).double()


@settings(max_examples=8, deadline=None, derandomize=True)
@given(names=st.lists(st.sampled_from(sorted(PIECES)), min_size=2, max_size=3), skip=st.booleans())
def test_pieces_one_after_the_other_are_exact(names: list[str], *, skip: bool) -> None:
    policy = chain_of(names, skip=skip)
    x, y = drawn(3, torch.float64)
    for law in (*laws.SWEEPS, *laws.EXACT):
        law(policy, x, y)
    certified = laws.estimates_are_gradients_and_certified_ones_exact(policy, x, y)
    if set(names) <= set(AFFINE) - NOT_ALWAYS_CERTIFIED:
        assert certified.all()


@settings(max_examples=8, deadline=None, derandomize=True)
@given(names=st.lists(st.sampled_from(sorted(ALL)), min_size=2, max_size=3), skip=st.booleans())
def test_whatever_stands_one_after_the_other_is_right_or_refused(names: list[str], *, skip: bool) -> None:
    policy = chain_of(names, skip=skip)
    x, y = drawn(3, torch.float64)
    for law in laws.SWEEPS:
        law(policy, x, y)
    laws.estimates_are_gradients_and_certified_ones_exact(policy, x, y)
    right_or_refused(policy, x, y)
