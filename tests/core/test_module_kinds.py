"""Modules inside torch's wrappers open; those without Python modules or weights inside are refused in words."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.errors import ConfigError

X = torch.rand(4, 6)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


class Inside(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part, self.head = part, nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.part(x))


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda m: nn.DataParallel(torch.compile(m))])
def test_a_wrapped_module_stands_for_the_one_inside(wrap):
    network = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on its first compile
        wrapped = wrap(network)

    policy = rlm.HookedPolicy(wrapped, X)

    assert policy.module is network
    assert "0.hook_out" in policy.hook_dict


def test_an_exported_program_opens_with_its_modules():
    network = net()
    program = torch.export.export(network, (X,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))

    policy = rlm.HookedPolicy(program, X)

    assert torch.equal(policy(X[:3]), network(X[:3]))
    assert {"0.hook_out", "2.hook_out"} <= set(policy.hook_dict)


def test_an_exported_program_of_one_batch_size_is_refused_with_the_way_to_export_it():
    program = torch.export.export(net(), (X,))

    with pytest.raises(ConfigError, match="batches of one size alone") as error:
        rlm.HookedPolicy(program, X)

    assert "Dim.DYNAMIC" in error.value.fix


def _quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear})


def _scripted(trace=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(net(), X) if trace else torch.jit.script(net())


REFUSED = {
    "scripted": (_scripted, "TorchScript"),
    "traced": (lambda: _scripted(trace=True), "TorchScript"),
    "a scripted part": (lambda: Inside(_scripted()), "TorchScript"),
    "quantised": (_quantised, "quantised layers"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2)), "lazy layers"),
    "module() of a program": (lambda: torch.export.export(net(), (X,)).module(), "what an exported program's module"),
    "a function": (lambda: lambda x: x, "is no torch module"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_nothing_to_hook_is_refused_in_words(name):
    make, words = REFUSED[name]

    with pytest.raises(ConfigError, match=words):
        rlm.HookedPolicy(make(), X)


def test_a_lazy_network_opens_once_it_has_seen_an_input():
    network = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2))
    network(X)

    assert rlm.HookedPolicy(network, X)(X).shape == (4, 2)


def test_a_module_with_an_empty_buffer_has_a_fingerprint_that_tells_its_name() -> None:
    def wrapped(name: str) -> rlm.HookedPolicy:
        torch.manual_seed(0)
        net = nn.Linear(4, 2)
        net.register_buffer(name, torch.zeros(0, 3))
        return rlm.HookedPolicy(net, torch.rand(2, 4))

    assert wrapped("a").fingerprint == wrapped("a").fingerprint != wrapped("b").fingerprint
