"""Every public analysis over every operation, in each form of its call: brute force agrees, or it is refused in words.

In double precision with seven rows, and in single precision with one row or two; every other policy has a value head.
"""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
from torch import Tensor

import rlmech as rlm
from tests.operations import brute_force as laws
from tests.operations.operation_cases import AFFINE, ATTENTION, BENDING, GATES, Around

GROUPS = {"affine": AFFINE, "gates": GATES, "bending": BENDING, "attention": ATTENTION}
CASES = [(group, name) for group, cases in GROUPS.items() for name in cases]
NOT_ALWAYS_CERTIFIED = {"a switch that another value sets"}
BRANCHES_AT_A_POINT = {"tanhshrink", "normalize", "local response norm"}
"""Of these one way leads through a hook point of their own, which path patching keeps at the base run."""
NO_SINGLE_LAYER = {"attention by a scaled addmm"}


@functools.cache
def wrapped(group: str, name: str, *, valued: bool) -> rlm.HookedPolicy:
    """A policy around one operation."""
    return rlm.HookedPolicy(Around(GROUPS[group][name], valued=valued).eval(), torch.rand(2, 4))


def has_value(group: str, name: str) -> bool:
    """Every other one has."""
    return list(GROUPS[group]).index(name) % 2 == 0


def drawn(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two batches of observations."""
    generator = torch.Generator().manual_seed(n)
    clean, corrupt = 1.5 * torch.randn(2, n, 4, generator=generator, dtype=torch.float64).to(dtype)
    return clean, corrupt


def check(group: str, name: str, policy: rlm.HookedPolicy, n: int) -> None:
    """All laws that hold for a group."""
    x, y = drawn(n, next(policy.module.parameters()).dtype)
    for law in laws.SWEEPS:
        law(policy, x, y)
    if group != "attention" and name not in BRANCHES_AT_A_POINT:
        laws.a_path_is_the_run_with_its_receiver_put_in(policy, x, y)
    certified = laws.estimates_are_gradients_and_certified_ones_exact(policy, x, y)
    assert certified.all() or group != "affine" or name in NOT_ALWAYS_CERTIFIED
    match group:
        case "attention" if name in NO_SINGLE_LAYER:
            with pytest.raises(rlm.RlmechError, match="an addmm that scales its product"):
                laws.weights_make_what_heads_read_and_write(policy, x, y)
        case "attention":
            for law in laws.INSIDE_ATTENTION:
                law(policy, x, y)
        case "bending":
            right_or_refused(policy, x, y)
        case _:
            for law in laws.EXACT:
                law(policy, x, y)


def right_or_refused(policy: rlm.HookedPolicy, x: Tensor, y: Tensor) -> None:
    """What the analyses of linear pieces must give of anything, unless they refuse it in words."""
    for law in laws.TANGENTS:
        with contextlib.suppress(rlm.RlmechError):
            law(policy, x, y)


@pytest.mark.parametrize(("group", "name"), CASES, ids=[f"{group}: {name}" for group, name in CASES])
def test_every_analysis_of_an_operation_agrees_with_brute_force(group: str, name: str) -> None:
    policy = wrapped(group, name, valued=has_value(group, name))
    assert policy.engine == "graph"
    policy.double()
    check(group, name, policy, 7)
    policy.float()
    for law in laws.BASIC:
        law(policy, *drawn(1 + CASES.index((group, name)) % 2, torch.float32))


@pytest.mark.parametrize("valued", [True, False])
@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("affine", "addmm, scaled"),
        ("gates", "clamp with values"),
        ("gates", "max-pool of an image"),
        ("bending", "softmax by keyword"),
        ("attention", "fused with a mask"),
    ],
)
def test_neither_batch_nor_precision_nor_a_value_head_matters(
    group: str, name: str, dtype: torch.dtype, n: int, *, valued: bool
) -> None:
    policy = wrapped(group, name, valued=valued)
    policy.to(dtype)
    check(group, name, policy, n)
