"""Files of ours notice each changed bit, and say what is wrong in words."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
import xarray as xr

import rlmech as rlm
from rlmech.adapters.rl_agents.config import read_config
from rlmech.errors import CacheError, CheckpointError, ConfigError
from rlmech.files import DamagedError, read_sealed, write_sealed
from rlmech.nets import MultiLayerPerceptron
from rlmech.training.config import TrainConfig
from rlmech.zoo import Card


@pytest.fixture
def policy() -> rlm.HookedPolicy:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    return rlm.HookedPolicy(net, torch.rand(2, 4))


def flipped(path: Path, *, every: int = 1):
    """The file with one bit changed, byte after byte; whole again afterwards."""
    whole = path.read_bytes()
    for place in range(0, len(whole), every):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        yield place
    path.write_bytes(whole)


def test_a_bit_flipped_anywhere_in_a_sealed_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "tensors.safetensors"
    tensors = {"a": torch.rand(5, 3), "b": torch.arange(4)}
    write_sealed(path, tensors, metadata={"format": "x", "text": 'a "quoted" word'})
    read, texts = read_sealed(path)
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert texts["text"] == 'a "quoted" word'
    for _ in flipped(path):
        with pytest.raises(DamagedError):
            read_sealed(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError):
        read_sealed(path)


def test_a_bit_flipped_anywhere_in_a_cache_is_noticed(policy: rlm.HookedPolicy, tmp_path: Path) -> None:
    _, cache = policy.run_with_cache(torch.rand(3, 4))
    path = cache.save(tmp_path / "cache.safetensors")
    loaded = rlm.ActivationCache.load(path)
    assert all(torch.equal(loaded[name], cache[name]) for name in cache)
    for _ in flipped(path):
        with pytest.raises(CacheError, match=r"cannot be read|no activation cache"):
            rlm.ActivationCache.load(path)


def test_a_bit_flipped_anywhere_in_a_journal_is_noticed(policy: rlm.HookedPolicy, tmp_path: Path) -> None:
    torch.manual_seed(1)
    given = {"clean": torch.rand(4, 4), "corrupt": torch.rand(4, 4)}
    rlm.activation_patching(policy, **given, journal=tmp_path / "j")
    files = sorted((tmp_path / "j").iterdir())
    assert len(files) > 1
    for file in files:
        for _ in flipped(file, every=17):
            with pytest.raises(ConfigError):
                rlm.activation_patching(policy, **given, journal=tmp_path / "j")


def test_a_bit_flipped_anywhere_in_a_policy_is_noticed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = MultiLayerPerceptron(4, (3,), d_out=2)
    path = rlm.save_policy(rlm.HookedPolicy(network, torch.rand(2, 4)), tmp_path / "policy.safetensors")
    assert rlm.load(path).fingerprint
    for _ in flipped(path, every=11):
        with pytest.raises(CheckpointError):
            rlm.load(path)


def test_a_bit_flipped_anywhere_in_a_circuit_is_noticed(policy: rlm.HookedPolicy, tmp_path: Path) -> None:
    torch.manual_seed(2)
    given = {"clean": torch.rand(8, 4), "corrupt": torch.rand(8, 4)}
    circuit = rlm.edges.discover_circuit(policy, **given, n_controls=2)
    path = circuit.save(tmp_path / "circuit.json")
    xr.testing.assert_identical(rlm.edges.Circuit.load(path).dataset, circuit.dataset)
    for _ in flipped(path, every=7):
        with pytest.raises(ConfigError, match="is no circuit"):
            rlm.edges.Circuit.load(path)


NO_JSON_OF_OURS = [
    "[" * 100_000,
    "[" * 400 + "]" * 400,
    '{"a":' * 400 + "1" + "}" * 400,
    "[1]",
    "\xff",
    "{",
    "",
    "9" * 5000,
]


@pytest.mark.parametrize("number", range(len(NO_JSON_OF_OURS)))
def test_json_that_is_none_or_deep_is_refused_in_words_wherever_it_is_read(tmp_path: Path, number: int) -> None:
    text = NO_JSON_OF_OURS[number]
    for name in ("circuit.json", "card.json", "config.json", "rl_agents.json"):
        (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError):
        rlm.edges.Circuit.load(tmp_path / "circuit.json")
    with pytest.raises(CheckpointError):
        Card.load(tmp_path / "card.json")
    with pytest.raises(ConfigError):
        TrainConfig.read_run(tmp_path)
    with pytest.raises(ConfigError):
        read_config(tmp_path / "rl_agents.json")
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("data", text.encode("latin-1"))
        archive.writestr("policy.pth", b"")
    with pytest.raises(CheckpointError):
        rlm.load(tmp_path / "model.zip")


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "\xff", "{"])
def test_a_journal_that_is_no_json_of_ours_is_refused_in_words(
    policy: rlm.HookedPolicy, tmp_path: Path, text: str
) -> None:
    given = {"clean": torch.rand(4, 4), "corrupt": torch.rand(4, 4)}
    rlm.activation_patching(policy, **given, journal=tmp_path)
    (tmp_path / "sweep.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match="journal is damaged"):
        rlm.activation_patching(policy, **given, journal=tmp_path)


def change_of(action: int, factor: float = 1.0):
    def change(scores, context):
        return factor * (scores[:, action] - context.clean.scores[:, action])  # 0 on each clean run

    return change


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_a_journal_answers_no_other_metrics_question(policy: rlm.HookedPolicy, tmp_path: Path, direction: str) -> None:
    given = {"clean": torch.rand(6, 4), "corrupt": torch.rand(6, 4), "direction": direction}
    first = rlm.activation_patching(policy, **given, metric=change_of(0), journal=tmp_path)
    again = rlm.activation_patching(policy, **given, metric=change_of(0), journal=tmp_path)
    assert first.patched.equals(again.patched)
    for other in (change_of(1), change_of(0, factor=2.0), lambda scores, context: scores[:, 0] - scores[:, 0]):
        with pytest.raises(ConfigError, match="another metric"):
            rlm.activation_patching(policy, **given, metric=other, journal=tmp_path)
