"""A traced graph goes to JSON and comes back the same; another module's is not taken, a wrong one is traced anew."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

import rlmech as rlm
from rlmech.core import graph_file
from rlmech.core.engine import GraphEngine
from rlmech.core.graph import Graph
from rlmech.core.tracing import trace
from rlmech.nets import EgoAttentionNetwork


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLMECH_CACHE", str(tmp_path))
    return tmp_path / "graphs"


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The modules that were exported, in order."""
    exported: list[nn.Module] = []

    def counted(module: nn.Module, *arguments: Any, **keywords: Any) -> Graph:
        exported.append(module)
        return trace(module, *arguments, **keywords)

    monkeypatch.setattr(graph_file, "trace", counted)
    return exported


def perceptron(width: int = 8, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), activation(), nn.Linear(width, 2))


def image_policy() -> nn.Module:
    from stable_baselines3.dqn.policies import CnnPolicy

    space = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    return CnnPolicy(space, spaces.Discrete(3), lambda _: 0.0).q_net.eval()


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "perceptron": lambda: (perceptron(), torch.rand(3, 4)),
    "float64": lambda: (perceptron().double(), torch.rand(3, 4).double()),
    "ego attention": lambda: (EgoAttentionNetwork(7, 3), torch.rand(3, 5, 7)),
    "transformer": lambda: (Flat(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()), torch.rand(3, 4, 8)),
    "images": lambda: (image_policy(), torch.randint(0, 255, (3, 3, 36, 36), dtype=torch.uint8)),
    "constants": lambda: (Scaled(), torch.rand(3, 4)),
}


class Flat(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift, self.head = torch.tensor([1.0, 2, 3, 4]), float("-inf"), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x * self.scale).clamp(min=self.shift) + torch.tensor([0.5]))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_from_json_gives_the_same_scores_and_the_same_points(name: str) -> None:
    torch.manual_seed(0)
    module, obs = NETWORKS[name]()
    first = rlm.HookedPolicy(module, obs)
    assert isinstance(first._wrapped.engine, GraphEngine)
    text = first._wrapped.engine.stored()
    assert text is not None
    with graph_file.offered(text):
        second = rlm.HookedPolicy(module, obs)
    assert isinstance(second._wrapped.engine, GraphEngine)
    assert second._wrapped.engine.is_known
    scores, cache = first.run_with_cache(obs)
    again, cache_again = second.run_with_cache(obs)
    assert torch.equal(scores, again)
    assert list(cache) == list(cache_again)
    assert all(torch.equal(cache[name], cache_again[name]) for name in cache)
    assert list(first.attention) == list(second.attention)
    assert second._wrapped.engine.stored() == text


def test_a_module_of_installed_classes_is_exported_once(traces: list[nn.Module], cache: Path) -> None:
    obs = torch.rand(3, 4)
    policies = [rlm.HookedPolicy(perceptron(), obs) for _ in range(3)]
    assert len(traces) == 1
    assert len(list(cache.iterdir())) == 1
    for policy in policies:
        assert torch.equal(policy(obs), policy.module(obs))


def test_weights_are_read_from_the_module_not_from_the_graph(traces: list[nn.Module]) -> None:
    obs, first, second = torch.rand(3, 4), perceptron(), perceptron()
    rlm.HookedPolicy(first, obs)
    policy = rlm.HookedPolicy(second, obs)
    assert len(traces) == 1
    with torch.no_grad():
        second[0].weight.mul_(2)
    assert torch.equal(policy(obs), second(obs))


CHANGES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "another width": lambda: (perceptron(9), torch.rand(3, 4)),
    "another activation": lambda: (perceptron(8, nn.Tanh), torch.rand(3, 4)),
    "another slope": lambda: (perceptron(8, lambda: nn.LeakyReLU(0.2)), torch.rand(3, 4)),
    "another precision": lambda: (perceptron().double(), torch.rand(3, 4).double()),
    "another observation": lambda: (nn.Sequential(nn.Flatten(), perceptron()), torch.rand(3, 2, 2)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_module_does_not_take_the_graph(name: str, traces: list[nn.Module]) -> None:
    rlm.HookedPolicy(perceptron(8, lambda: nn.LeakyReLU(0.1)), torch.rand(3, 4))
    rlm.HookedPolicy(perceptron(), torch.rand(3, 4))
    module, obs = CHANGES[name]()
    policy = rlm.HookedPolicy(module, obs)
    assert len(traces) == 3
    assert torch.equal(policy(obs), module(obs))


def test_tied_layers_are_another_module(traces: list[nn.Module]) -> None:
    layer = nn.Linear(4, 4)
    rlm.HookedPolicy(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.rand(2, 4))
    policy = rlm.HookedPolicy(nn.Sequential(layer, layer), torch.rand(2, 4))
    assert len(traces) == 2
    assert torch.equal(policy(torch.ones(1, 4)), policy.module(torch.ones(1, 4)))


def test_classes_of_the_users_own_are_traced_in_every_process(traces: list[nn.Module], cache: Path) -> None:
    for _ in range(2):
        rlm.HookedPolicy(Scaled(), torch.rand(3, 4))
    assert len(traces) == 2
    assert not cache.exists()


def test_a_plain_tensor_of_another_value_is_another_module() -> None:
    first, second = Scaled(), Scaled()
    second.scale = second.scale * 2
    obs = torch.rand(3, 4)
    assert graph_file.graph_key(first, obs) != graph_file.graph_key(second, obs)


DAMAGE: dict[str, Callable[[str], str]] = {
    "cut": lambda text: text[: len(text) // 2],
    "no JSON": lambda _: "\x00",
    "another form": lambda _: json.dumps([1, 2]),
    "deep": lambda _: "[" * 100_000,
    "one letter": lambda text: text.replace("linear", "linearx", 1),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_graph_is_traced_anew(name: str, traces: list[nn.Module], cache: Path) -> None:
    obs = torch.rand(3, 4)
    rlm.HookedPolicy(perceptron(), obs)
    (kept,) = cache.iterdir()
    kept.write_text(DAMAGE[name](kept.read_text()))
    policy = rlm.HookedPolicy(perceptron(), obs)
    assert len(traces) == 2
    assert torch.equal(policy(obs), policy.module(obs))


def test_a_graph_that_computes_something_else_fails_parity_and_is_traced_anew(
    monkeypatch: pytest.MonkeyPatch, traces: list[nn.Module]
) -> None:
    module, obs = perceptron(), torch.rand(3, 4)
    other = trace(perceptron(8, nn.Tanh), obs)
    monkeypatch.setattr(graph_file, "known_graph", lambda *_: other)
    policy = rlm.HookedPolicy(module, obs)
    assert traces == [module]
    assert torch.equal(policy(obs), module(obs))


def test_a_pickled_or_copied_policy_brings_its_graph_along(traces: list[nn.Module]) -> None:
    policy = rlm.HookedPolicy(Scaled(), torch.rand(3, 4))
    for other in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):  # our own bytes
        assert torch.equal(other(torch.ones(2, 4)), policy(torch.ones(2, 4)))
    assert len(traces) == 1


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, traces: list[nn.Module]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLMECH_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        rlm.HookedPolicy(perceptron(), torch.rand(3, 4))
    assert len(traces) == 2
