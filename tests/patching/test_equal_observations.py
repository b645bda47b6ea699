"""Equal observations have equal baselines in one sweep, wherever they stand in it."""

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.nets import EgoAttentionNetwork
from rlmech.patching.sweeps.distinct import distinct_rows
from rlmech.patching.sweeps.sweep import outputs_of
from tests import networks as nets

CASES = {
    "odd widths": (lambda: nn.Sequential(nn.Linear(6, 25), nn.ReLU(), nn.Linear(25, 3)), lambda: torch.rand(9, 6)),
    "SiLU of odd widths": (
        lambda: nn.Sequential(nn.Linear(6, 25), nn.SiLU(), nn.Linear(25, 5)),
        lambda: torch.rand(9, 6),
    ),
    "ego attention": (lambda: EgoAttentionNetwork(7, 5), lambda: nets.scenes(9)),
    "a dict": (nets.DictObservation, lambda: {"track": torch.rand(9, 6, 3), "camera": torch.rand(9, 4)}),
}


def mixed(obs, seed):
    """Twelve copies of the first observation among five others, and where they stand."""
    order = torch.tensor([0] * 12 + [1, 2, 3, 4, 5])[torch.randperm(17, generator=torch.Generator().manual_seed(seed))]
    chosen = {key: value[order] for key, value in obs.items()} if isinstance(obs, dict) else obs[order]
    return chosen, (order == 0).numpy()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_copies_of_an_observation_have_one_baseline(case, seed):
    torch.manual_seed(seed)
    make, example = CASES[case]
    obs = example()
    policy = rlm.HookedPolicy(make().eval(), obs)
    given, copies = mixed(obs, seed)
    metric = rlm.metrics.action_gap(0, 1)
    name = next(name for name, point in policy.hook_dict.items() if point.kind in ("activation", "z"))
    ablated = rlm.ablation_sweep(policy, given, sites=[name], metric=metric)
    assert len(np.unique(ablated.baseline.values[copies])) == 1
    patched = rlm.activation_patching(policy, clean=given, corrupt=given, sites=[name], metric=metric)
    assert len(np.unique(patched.clean.values[copies])) == 1
    np.testing.assert_array_equal(patched.patched.values[0], patched.corrupt.values)
    scores = policy(given).detach()
    np.testing.assert_allclose(ablated.baseline.values, (scores[:, 0] - scores[:, 1]).double(), atol=1e-5)


def test_each_observation_keeps_its_own_outputs():
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(nets.mlp(4, 8, 3), torch.rand(2, 4))
    obs = torch.rand(6, 4)[torch.tensor([3, 1, 3, 0, 5, 1, 3])]
    torch.testing.assert_close(outputs_of(policy, obs).scores, policy(obs).detach())
    torch.testing.assert_close(outputs_of(policy, obs.numpy()).scores, policy(obs).detach())


def test_what_is_attached_to_the_policy_still_sees_every_row():
    policy = rlm.HookedPolicy(nets.mlp(4, 8, 3), torch.rand(2, 4))
    obs, seen = torch.zeros(5, 4), []
    with policy.hooks(fwd_hooks=[("0.hook_out", lambda tensor, hook: seen.append(len(tensor)))]):
        outputs_of(policy, obs)
    assert seen == [5]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
)
def test_rows_are_compared_bit_for_bit_in_every_dtype(dtype):
    values = torch.tensor([[0, 1], [1, 1], [0, 1]]).to(dtype)
    found = distinct_rows([values])
    assert found.kind.tolist() == [0, 1, 0]
    assert found.first.tolist() == [0, 1]
    assert distinct_rows([values, torch.arange(3)]) is None
    assert distinct_rows([values[:, 0]]).kind.tolist() == [0, 1, 0]
