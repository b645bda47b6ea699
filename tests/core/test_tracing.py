"""What exporting a module leaves behind in the process: nothing that grows, nothing printed, no state changed."""

import builtins
import gc
import logging
import sys
import threading

import pytest
import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import rlmech as rlm
from tests import networks as nets


def wrap():
    return rlm.HookedPolicy(nets.mlp(4, 8, 3), torch.rand(2, 4))


def test_nothing_of_torchs_tracing_stays_reachable():
    wrap()
    gc.collect()
    before = sum(type(held) is ShapeEnv for held in gc.get_objects())
    for _ in range(4):
        wrap()
    gc.collect()
    assert sum(type(held) is ShapeEnv for held in gc.get_objects()) <= before


def test_a_module_that_cannot_be_exported_prints_nothing_and_leaves_the_process_as_it_was(capfd):
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before = (sys.stderr, builtins.len, logger.level, torch.backends.mha.get_fastpath_enabled())
    assert rlm.HookedPolicy(nets.Branching(), torch.rand(2, 4)).engine == "eager"
    assert (sys.stderr, builtins.len, logger.level, torch.backends.mha.get_fastpath_enabled()) == before
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_policies_wrapped_in_several_threads_leave_the_process_as_it_was():
    before = (sys.stderr, builtins.len, torch.backends.mha.get_fastpath_enabled())
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(rlm.HookedPolicy(nets.Branching(), torch.rand(2, 4)).engine))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["eager"] * 3
    assert (sys.stderr, builtins.len, torch.backends.mha.get_fastpath_enabled()) == before


@pytest.mark.parametrize("make", [nn.ReLU, nn.Tanh])
def test_a_policy_outlives_what_was_let_go(make):
    module = nn.Sequential(nn.Linear(4, 8), make(), nn.Linear(8, 3))
    policy = rlm.HookedPolicy(module, torch.rand(2, 4))
    for n in (1, 2, 9):
        obs = torch.rand(n, 4)
        torch.testing.assert_close(policy(obs), module(obs))
