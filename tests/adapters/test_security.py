"""Pickle bombs: opening a file runs nothing of what it holds, wherever in it that stands."""

from __future__ import annotations

import base64
import io
import json
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from rlmech.adapters.load import load
from rlmech.errors import CheckpointError

CONFIG = {"model": {"attention_layer": {"heads": 4}}}


class Bomb:
    """Unpickling it touches a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.fixture
def crater(tmp_path) -> Path:
    return tmp_path / "ran"


def _rewrite(source: Path, target: Path, replaced: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, replaced.get(name, old.read(name)))
    return target


def _data_with_bomb(source: Path, key: str, crater: Path) -> bytes:
    with zipfile.ZipFile(source) as archive:
        data = json.loads(archive.read("data"))
    entry = data.get(key) if isinstance(data.get(key), dict) else {":type:": "<class 'object'>"}
    data[key] = entry | {":serialized:": base64.b64encode(pickle.dumps(Bomb(crater))).decode()}
    return json.dumps(data).encode()


def _saved(values, **kwargs) -> bytes:
    buffer = io.BytesIO()
    torch.save(values, buffer, **kwargs)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "key", ["policy_class", "observation_space", "action_space", "lr_schedule", "an_unknown_entry"]
)
def test_a_bomb_in_the_data_of_a_zip_is_never_touched(dqn_zip, tmp_path, crater, key):
    bombed = _rewrite(dqn_zip, tmp_path / "bombed.zip", {"data": _data_with_bomb(dqn_zip, key, crater)})

    policy = load(bombed)

    assert not crater.exists()
    assert policy.fingerprint == load(dqn_zip).fingerprint


def test_the_bomb_of_these_tests_goes_off_where_pickles_are_trusted(dqn_zip, tmp_path, crater):
    bombed = _rewrite(dqn_zip, tmp_path / "bombed.zip", {"data": _data_with_bomb(dqn_zip, "an_unknown_entry", crater)})

    load(bombed, trust_pickle=True)

    assert crater.exists()


def test_a_bomb_in_the_weights_of_a_zip_is_refused(dqn_zip, tmp_path, crater):
    bombed = _rewrite(dqn_zip, tmp_path / "bombed.zip", {"policy.pth": _saved({"q_net.q_net.0.weight": Bomb(crater)})})
    before = bombed.read_bytes()

    with pytest.raises(CheckpointError, match=r"policy\.pth in bombed\.zip holds more than tensors") as refusal:
        load(bombed)

    assert not crater.exists()
    assert "nothing was run" in str(refusal.value)
    assert refusal.value.given.startswith("WeightsUnpickler error: Unsupported")
    assert "add_safe_globals" not in str(refusal.value)
    assert "trust_pickle=True" in refusal.value.fix
    assert bombed.read_bytes() == before


@pytest.mark.parametrize("zipped", [True, False], ids=["zip format", "legacy format"])
def test_a_bomb_in_a_checkpoint_is_refused(tmp_path, crater, zipped):
    values = {"state_dict": {"predict.weight": torch.zeros(2, 2)}, "optimizer": Bomb(crater)}
    path = tmp_path / "latest.tar"
    path.write_bytes(_saved(values, _use_new_zipfile_serialization=zipped))

    with pytest.raises(CheckpointError, match=r"latest\.tar holds more than tensors"):
        load(path)

    assert not crater.exists()


def test_a_bare_pickle_is_refused_whatever_its_name(tmp_path, crater):
    for name in ("model.zip", "model.tar", "model.pt", "policy.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(crater)))

        with pytest.raises(CheckpointError):
            load(tmp_path / name)

    assert not crater.exists()


def test_a_tar_archive_of_pickles_is_refused(tmp_path, crater):
    content = pickle.dumps(Bomb(crater))
    with tarfile.open(tmp_path / "model.tar", "w") as archive:
        for name in ("pickle", "storages", "tensors", "sys_info"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

    with pytest.raises(CheckpointError):
        load(tmp_path / "model.tar")

    assert not crater.exists()


def test_a_checkpoint_with_more_than_tensors_opens_where_pickles_are_trusted(ego_checkpoint, tmp_path, crater):
    values = torch.load(ego_checkpoint, weights_only=True) | {"optimizer": Bomb(crater)}
    path = tmp_path / "trusted.tar"
    torch.save(values, path)
    env_config = {"observation": {"type": "Kinematics", "vehicles_count": 4, "features": list("pxyabcd")}}

    policy = load(path, config=CONFIG, env_config=env_config, trust_pickle=True)

    assert crater.exists()
    assert policy(torch.rand(2, 4, 7)).shape == (2, 3)


def test_classes_and_modules_that_a_configuration_names_are_never_imported(ego_checkpoint, tmp_path, monkeypatch):
    (tmp_path / "bomb_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    config = CONFIG | {"__class__": "<class 'bomb_module.Agent'>"}
    env_config = {
        "import_module": "bomb_module",
        "observation": {"type": "Kinematics", "vehicles_count": 4, "features": list("pxyabcd")},
    }

    load(ego_checkpoint, config=config, env_config=env_config)

    assert not (tmp_path / "ran").exists()


def test_a_features_extractor_named_in_a_zip_is_never_imported(dqn_zip, tmp_path, monkeypatch):
    (tmp_path / "bomb_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    with zipfile.ZipFile(dqn_zip) as archive:
        data = json.loads(archive.read("data"))
    data["policy_kwargs"] = {"features_extractor_class": "<class 'bomb_module.Extractor'>"}
    bombed = _rewrite(dqn_zip, tmp_path / "bombed.zip", {"data": json.dumps(data).encode()})

    with pytest.raises(CheckpointError, match=r"features extractor 'bomb_module\.Extractor'"):
        load(bombed)

    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95, 0.999])
def test_a_cut_file_is_an_error_that_says_so_and_stays_as_it_is(dqn_zip, ego_checkpoint, tmp_path, share):
    for whole in (dqn_zip, ego_checkpoint):
        cut = tmp_path / f"cut{whole.suffix}"
        shutil.copy(whole, cut)
        content = whole.read_bytes()[: int(whole.stat().st_size * share)]
        cut.write_bytes(content)

        with pytest.raises(CheckpointError, match="damaged") as error:
            load(cut, config=CONFIG if whole is ego_checkpoint else None)

        assert "copy or download it again" in error.value.fix
        assert cut.read_bytes() == content


def test_a_flipped_byte_in_the_weights_is_noticed(dqn_zip, tmp_path):
    content = bytearray(dqn_zip.read_bytes())
    with zipfile.ZipFile(dqn_zip) as archive:
        content[archive.getinfo("policy.pth").header_offset + 2000] ^= 0xFF
    broken = tmp_path / "broken.zip"
    broken.write_bytes(content)

    with pytest.raises(CheckpointError, match="damaged"):
        load(broken)
