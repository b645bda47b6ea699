"""Each operation is certified where it acts linearly on what a patch changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rlmech as rlm
from rlmech.attribution.first_order import attribution_patching

GATES = {
    "relu": torch.relu,
    "leaky relu": lambda h: nn.functional.leaky_relu(h, 0.3),
    "absolute value": torch.abs,
    "clamp": lambda h: h.clamp(-0.3, 0.4),
    "lower clamp": lambda h: h.clamp(min=-0.2),
    "hardtanh": lambda h: nn.functional.hardtanh(h, -0.3, 0.4),
    "relu6": lambda h: nn.functional.relu6(9 * h),
    "threshold": lambda h: nn.functional.threshold(h, 0.1, 0.7),
    "largest": lambda h: h.reshape(-1, 4, 3).amax(2).repeat(1, 3),
    "smallest": lambda h: h.reshape(-1, 4, 3).amin(2, keepdim=True).expand(-1, 4, 3).flatten(1),
    "max-pool": lambda h: nn.functional.max_pool1d(h[:, None], 3)[:, 0].repeat(1, 3),
    "larger of two": lambda h: torch.maximum(h, h.flip(1)),
    "step": lambda h: (h > 0).to(h) * 2 + h,
    "switch": lambda h: torch.where(h[:, :1] > 0, h, -2 * h),
    "product": lambda h: h * h.flip(1),
    "product of halves": lambda h: h[:, :6].repeat(1, 2) * h[:, 6:].repeat(1, 2),
    "softmax": lambda h: h.softmax(1),
    "stop": lambda h: h.detach() + h.flip(1),
    "power": lambda h: h**2,
}


class Gated(nn.Module):
    """One operation between two linear layers."""

    def __init__(self, operation) -> None:
        super().__init__()
        self.before, self.operation, self.after = nn.Linear(4, 12), operation, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.operation(self.before(x)))


@pytest.mark.parametrize("name", list(GATES))
def test_each_operation_is_certified_where_it_acts_linearly_and_nowhere_else(name):
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(Gated(GATES[name]).double(), torch.rand(2, 4, dtype=torch.float64))
    clean, corrupt = torch.randn(2, 200, 4, dtype=torch.float64)
    sites = [rlm.Site("before.hook_out", neuron=(0, 6)), rlm.Site("before.hook_out", neuron=3)]
    result = attribution_patching(policy, clean=clean, corrupt=corrupt, sites=sites, certificate=True)
    certified, remainder = result["certified"].to_numpy(), np.abs(result["remainder"].to_numpy())
    assert remainder[certified].max(initial=0) < 1e-12
    assert not certified.all()
    if name not in ("softmax", "stop", "power", "product"):
        assert (certified == (remainder < 1e-12)).mean() > 0.9  # but for agreement by chance, as of a max not reached
        assert certified.any()
    if name == "product of halves":  # both factors change in the first site, one in the second
        assert certified.tolist() == [[False] * 200, [True] * 200]


def random_network(seed: int) -> tuple[nn.Module, Tensor]:
    """A stack of random depth and widths, each layer followed by a random operation, some skipped over."""
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    choices = [
        nn.ReLU(),
        nn.LeakyReLU(0.2),
        nn.Hardtanh(),
        nn.ReLU6(),
        nn.Identity(),
        nn.Tanh(),
        nn.ELU(),
        nn.Softplus(),
    ]
    width = int(generator.integers(3, 9))
    layers: list[nn.Module] = [nn.Linear(4, width)]
    for _ in range(generator.integers(1, 5)):
        operation = choices[generator.integers(len(choices) if seed % 2 else 5)]  # every other one piecewise linear
        block = nn.Sequential(operation, nn.Linear(width, width))
        layers.append(Skip(block) if generator.random() < 0.5 else block)
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(width, 3)).double(), torch.randn(2, 40, 4).double()


class Skip(nn.Module):
    """A residual block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


@pytest.mark.parametrize("seed", range(16))
def test_certified_means_exact_in_random_architectures(seed):
    net, (clean, corrupt) = random_network(seed)
    policy = rlm.HookedPolicy(net, clean[:2])
    sites = [site for name in policy.hook_dict for site in policy.sites(name, over=policy.hook_dict[name].axes[1])]
    result = attribution_patching(policy, clean=clean, corrupt=corrupt, sites=sites, certificate=True)
    exact = rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=sites)
    certified = result["certified"].to_numpy()
    effects = (exact["patched"] - exact["corrupt"]).to_numpy()
    np.testing.assert_allclose(result["estimate"].to_numpy()[certified], effects[certified], atol=1e-12)
    assert certified.mean() > 0.1
    if seed % 2 == 0:  # piecewise linear: what is not certified did bend, but for units that reach nothing
        assert (np.abs(effects - result["estimate"].to_numpy())[~certified] > 1e-12).mean() > 0.7


def test_one_step_of_the_midpoint_rule_is_exact_for_a_square():
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(Gated(lambda h: h * h).double(), torch.rand(2, 4, dtype=torch.float64))
    clean, corrupt = torch.randn(2, 20, 4, dtype=torch.float64)
    sites = policy.sites("before.hook_out", over="neuron")
    result = attribution_patching(policy, clean=clean, corrupt=corrupt, sites=sites, n_steps=1, exact=True)
    assert np.abs(result["completeness_error"]).max() < 1e-12
    assert np.abs(result["remainder"]).max() < 1e-12  # each square is of one neuron, and so is its line
