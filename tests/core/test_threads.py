"""Hooks belong to the context that attached them: threads and tasks share a policy without seeing each other's."""

from __future__ import annotations

import asyncio
import copy
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import rlmech as rlm
from rlmech.core.interventions import steer
from tests import networks as nets

OBS = torch.rand(16, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _threads_take_turns_often():
    """Every few dozen steps of the interpreter: what can come between two of them does."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


def graph_policy():
    torch.manual_seed(0)
    return rlm.HookedPolicy(nets.mlp(4, 8, 3), OBS[:2])


def eager_policy():
    torch.manual_seed(0)
    return rlm.HookedPolicy(nets.Branching(), torch.tensor([[1.0] * 4, [-1.0] * 4]))


def scaled(policy, name, factor):
    return policy.run_with_hooks(OBS, fwd_hooks=[(name, lambda tensor, hook: tensor * factor)])


def edited(policy, name, factor):
    width = policy.point(name).size("neuron")
    with policy.edited([steer(name, torch.ones(width), factor)]):
        return policy(OBS)


def attached(policy, name, factor):
    with policy.hooks(fwd_hooks=[(name, lambda tensor, hook: tensor * factor)]):
        return policy.run_with_cache(OBS)[0]


@pytest.mark.parametrize("make", [graph_policy, eager_policy])
@pytest.mark.parametrize("run", [scaled, edited, attached])
def test_four_threads_with_four_scales_get_four_right_answers(make, run):
    policy = make()
    name = "0.hook_out" if policy.engine == "graph" else "head.hook_out"
    right = [run(policy, name, factor).detach() for factor in range(4)]
    assert len({tuple(scores.flatten().tolist()) for scores in right}) == 4
    start = threading.Barrier(4)

    def work(factor):
        start.wait()
        return [torch.equal(run(policy, name, factor), right[factor]) for _ in range(150)]

    with ThreadPoolExecutor(4) as pool:
        assert all(all(answers) for answers in pool.map(work, range(4)))


def test_a_thread_does_not_see_hooks_that_another_has_attached():
    policy = graph_policy()
    plain = policy(OBS)
    with ThreadPoolExecutor(1) as pool, policy.edited([rlm.zero_ablation("0.hook_out")]):
        assert torch.equal(pool.submit(policy, OBS).result(), plain)
        assert not torch.equal(policy(OBS), plain)
        assert policy.has_hooks
        assert not pool.submit(lambda: policy.has_hooks).result()


def test_tasks_that_take_turns_keep_their_own_hooks():
    policy = graph_policy()
    right = [scaled(policy, "0.hook_out", factor).detach() for factor in range(4)]

    async def work(factor):
        with policy.hooks(fwd_hooks=[("0.hook_out", lambda tensor, hook: tensor * factor)]):
            for _ in range(5):
                await asyncio.sleep(0)
                assert torch.equal(policy(OBS), right[factor])

    async def together():
        await asyncio.gather(*(work(factor) for factor in range(4)))

    asyncio.run(together())
    assert not policy.has_hooks


def test_a_handle_detaches_from_whichever_thread_removes_it():
    policy = graph_policy()
    plain = policy(OBS)
    handle = policy.point("0.hook_out").add_hook(lambda tensor, hook: tensor * 0)
    assert not torch.equal(policy(OBS), plain)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(handle.remove).result()
    assert torch.equal(policy(OBS), plain)
    assert not policy.has_hooks


def test_a_site_is_equal_and_hashes_alike_in_another_process():
    sites = [rlm.Site("a.hook_z"), rlm.Site("a.hook_z", head=2, entity=("ego", "vehicle_1"))]
    code = (
        f"import pickle, rlmech as rlm; a, b = pickle.loads({pickle.dumps(sites)!r});"
        "x, y = rlm.Site('a.hook_z'), rlm.Site('a.hook_z', head=2, entity=('ego', 'vehicle_1'));"
        "assert (a, b) == (x, y) and {a, b} == {x, y} and {a: 1}[x] == 1 and hash(b) == hash(y)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONHASHSEED": "77", "PYTHONPATH": "."})
    assert copy.deepcopy(sites) == sites
