"""The cache: chosen by name, read-only, labelled, movable, saved without pickle and loaded back equal."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech.errors import CacheError, SiteError
from tests import networks as nets


@pytest.fixture(scope="module")
def policy():
    return rlm.HookedPolicy(nets.FusedAttention(), nets.scenes(2), spec=nets.SPEC)


@pytest.fixture
def cache(policy):
    return policy.run_with_cache(nets.scenes(6))[1]


def test_names_are_chosen_by_name_glob_list_or_function(policy):
    obs = nets.scenes(2)
    assert list(policy.run_with_cache(obs, "hook_z")[1]) == ["hook_z"]
    assert list(policy.run_with_cache(obs, "hook_[qk]")[1]) == ["hook_q", "hook_k"]
    assert set(policy.run_with_cache(obs, ["hook_z", "*.hook_out"])[1]) == {"hook_z"} | {
        name for name in policy.hook_dict if name.endswith(".hook_out")
    }
    assert list(policy.run_with_cache(obs, lambda name: name == "hook_v")[1]) == ["hook_v"]
    assert set(policy.run_with_cache(obs)[1]) == set(policy.hook_dict)


@pytest.mark.parametrize("names", ["hook_patern", ["hook_z", "hook_patern"], lambda name: False])
def test_a_name_that_matches_nothing_is_an_error_with_the_nearest(policy, names):
    with pytest.raises(SiteError) as error:
        policy.run_with_cache(nets.scenes(2), names)
    if not callable(names):
        assert str(error.value) == (
            "FusedAttention has no hook point 'hook_patern'.\n"
            f"  given: 'hook_patern'   expected: one of {len(policy.hook_dict)} names, e.g. 'hook_pattern'\n"
            "  fix: did you mean 'hook_pattern'? policy.hook_dict lists them all"
        )


def test_a_value_changed_in_place_is_refused(cache):
    cache["q.hook_out"].detach().add_(1)
    with pytest.raises(CacheError, match="changed in place"):
        cache["q.hook_out"]
    with pytest.raises(CacheError, match="shares its memory"):
        cache["hook_q"]
    assert cache["hook_k"].shape[0] == 6


def test_a_reused_observation_array_does_not_change_the_cache(policy):
    obs = nets.scenes(3).numpy()
    kept = obs.copy()
    _, cache = policy.run_with_cache(obs)
    obs[:] = 0
    assert np.array_equal(cache["hook_obs"].numpy(), kept)


def test_a_cache_cannot_be_assigned_to(cache):
    with pytest.raises(TypeError):
        cache["hook_z"] = torch.zeros(1)


def test_select_takes_rows_of_everything(cache):
    some = cache.select([4, 1])
    assert some.batch_size == 2
    assert all(torch.equal(some[name], cache[name][[4, 1]]) for name in cache)
    assert cache.select(slice(2, 3)).batch_size == 1
    with pytest.raises(CacheError, match=r"slice\(2, 3\)"):
        cache.select(2)


def test_stack_makes_a_site_axis(cache):
    stacked = cache.stack(["hook_k", "hook_v"])
    assert torch.equal(stacked, torch.stack([cache["hook_k"], cache["hook_v"]]))
    with pytest.raises(CacheError, match="one shape"):
        cache.stack(["hook_k", "hook_pattern"])


def test_a_missing_name_is_an_error_with_the_nearest(policy):
    _, cache = policy.run_with_cache(nets.scenes(2), "hook_z")
    with pytest.raises(SiteError, match=r"did you mean 'hook_z'\?"):
        cache["hook_zz"]
    with pytest.raises(SiteError, match="run_with_cache"):
        cache["value"]
    with pytest.raises(SiteError):
        cache.axes("hook_q")


def test_what_is_saved_loads_back_equal(cache, tmp_path):
    path = cache.detach().save(tmp_path / "cache.safetensors")
    loaded = rlm.ActivationCache.load(path)
    assert list(loaded) == list(cache)
    for name in cache:
        assert torch.equal(loaded[name], cache[name])
        assert loaded[name].dtype == cache[name].dtype
        assert loaded.axes(name) == cache.axes(name)
    cache.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["cache.safetensors"]


def test_a_damaged_or_foreign_file_is_an_error_and_a_failed_write_leaves_the_old_file(cache, tmp_path, monkeypatch):
    path = cache.save(tmp_path / "cache.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CacheError, match="cannot be read"):
        rlm.ActivationCache.load(path)
    with pytest.raises(FileNotFoundError):
        rlm.ActivationCache.load(tmp_path / "none")
    path.write_bytes(whole)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        cache.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == whole
    assert len(list(tmp_path.iterdir())) == 1
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(CacheError, match="it holds no checksum"):
        rlm.ActivationCache.load(tmp_path / "other")


def test_to_and_detach_give_new_caches(cache):
    moved = cache.to("cpu")
    assert moved is not cache
    assert not any(value.requires_grad for value in cache.detach().values())


def test_per_head_results_are_computed_when_asked_for_and_not_from_other_weights():
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(nets.FusedAttention(), nets.scenes(2))
    obs = nets.scenes(3)
    _, cache = policy.run_with_cache(obs)
    _, asked = policy.run_with_cache(obs, "hook_result")
    assert torch.equal(cache["hook_result"], asked["hook_result"])
    assert list(cache) == [name for name in policy.hook_dict if name != "hook_result"] + ["hook_result"]
    _, late = policy.run_with_cache(obs)
    with torch.no_grad():
        policy.module.out.weight.mul_(2)
    with pytest.raises(CacheError, match="weights have changed"):
        late["hook_result"]


def test_a_cache_is_not_saved_over_a_directory_nor_into_none(tmp_path):
    policy = rlm.HookedPolicy(torch.nn.Linear(3, 2), torch.rand(2, 3))
    cache = policy.run_with_cache(torch.rand(2, 3))[1]
    with pytest.raises(CacheError, match="a directory of that name"):
        cache.save(tmp_path)
    with pytest.raises(CacheError, match="no directory"):
        cache.save(tmp_path / "absent" / "cache.safetensors")
    assert list(tmp_path.iterdir()) == []
