"""Dictionaries: a planted code is found, worth is judged by decisions, and features are exact edits and neurons."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

import rlmech as rlm
from rlmech.errors import ConfigError, MissingFileError, SiteError
from rlmech.features import (
    Dictionary,
    DictionaryScores,
    compare_dictionaries,
    drive_features,
    feature_effects,
    fit_dictionary,
    splice_hooks,
    spliced,
)
from rlmech.nets import EgoAttentionNetwork
from tests import networks

N_FEATURES, WIDTH, K = 24, 12, 2


def directions() -> torch.Tensor:
    drawn = torch.randn(N_FEATURES, WIDTH, generator=torch.Generator().manual_seed(0))
    return drawn / drawn.norm(dim=1, keepdim=True)


def sparse(n: int) -> torch.Tensor:
    """States of which two numbers in 24 are not zero."""
    generator = torch.Generator().manual_seed(1)
    places = torch.rand(n, N_FEATURES, generator=generator).topk(K).indices
    return torch.zeros(n, N_FEATURES).scatter(1, places, torch.rand(n, K, generator=generator) + 0.5)


@pytest.fixture(scope="module")
def policy() -> rlm.HookedPolicy:
    """Its layer holds the numbers as directions, more than it has neurons; decisions read each of them."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(N_FEATURES, WIDTH, bias=False), nn.Linear(WIDTH, 24), nn.ReLU(), nn.Linear(24, 3))
    with torch.no_grad():
        net[0].weight.copy_(directions().T)
        net[3].weight.mul_(5)
    return rlm.HookedPolicy(net, torch.rand(2, N_FEATURES))


@pytest.fixture(scope="module")
def fitted(policy: rlm.HookedPolicy) -> Dictionary:
    return fit_dictionary(policy, sparse(3000), site="0.hook_out", n_features=N_FEATURES, k=K, n_steps=500)


@pytest.mark.parametrize("kind", ["topk", "batch_topk", "jump_relu"])
def test_a_planted_sparse_code_is_recovered(policy: rlm.HookedPolicy, fitted: Dictionary, kind: Any) -> None:
    given: dict[str, Any] = {"site": "0.hook_out", "n_features": N_FEATURES, "k": K, "n_steps": 500}
    given["n_steps"] *= 2 if kind == "jump_relu" else 1
    found = fitted if kind == "topk" else fit_dictionary(policy, sparse(3000), kind=kind, **given)
    cosine = (found.decoder @ directions().T).numpy()
    mine, planted = scipy.optimize.linear_sum_assignment(-cosine)
    assert cosine[mine, planted].mean() > 0.95
    codes = found.codes(policy, sparse(1000))
    assert float((codes != 0).sum(1).float().mean()) == pytest.approx(K, abs=0.4)
    told = codes[:, mine][:, np.argsort(planted)] > 0
    assert float((told == (sparse(1000) > 0)).float().mean()) > 0.97


@pytest.fixture(scope="module")
def scores(policy: rlm.HookedPolicy) -> DictionaryScores:
    given: dict[str, Any] = {"site": "0.hook_out", "n_features": N_FEATURES, "k": K, "n_steps": 500, "n_fits": 2}
    return compare_dictionaries(policy, sparse(3000), **given)


def test_what_is_sparse_is_worth_a_dictionary(scores: DictionaryScores) -> None:
    result = scores.result
    assert scores.says["topk"].startswith("keeps ")
    assert float(result["stability"].sel(dictionary="topk")) > 0.8
    assert float(result["explained"].sel(dictionary="topk")) > 0.9 > float(result["explained"].sel(dictionary="pca"))
    assert (result["n_active"] <= K + 0.01).all()
    np.testing.assert_allclose(result["agreement"].sel(splice="with_error"), 1)
    np.testing.assert_allclose(result["kl"].sel(splice="with_error"), 0, atol=1e-9)
    assert float(result["kept"].sel(dictionary="nothing")) == 0
    one = result.sel(dictionary="topk", splice="reconstruction")
    assert float(one["agreement_low"]) < float(one["agreement"]) < float(one["agreement_high"])
    assert result["agreement_by_fit"].sel(dictionary="topk").shape == (2,)


def test_what_is_not_sparse_is_not_worth_one(policy: rlm.HookedPolicy) -> None:
    flat = torch.randn(600, N_FEATURES, generator=torch.Generator().manual_seed(2))
    flat = flat * torch.linspace(3, 0.05, N_FEATURES)
    found = compare_dictionaries(policy, flat, site="0.hook_out", n_features=20, k=6, n_steps=60, n_fits=2)
    assert found.says["topk"].startswith("not worth it")


def test_a_basis_with_all_its_parts_gives_the_value_back(policy: rlm.HookedPolicy) -> None:
    obs = sparse(500)
    for kind in ("pca", "ica", "neurons"):
        found = fit_dictionary(policy, obs, site="0.hook_out", kind=kind, k=WIDTH)
        with policy.edited(found.splice()):
            torch.testing.assert_close(policy(obs), policy.module(obs), atol=1e-4, rtol=1e-4)


def test_components_of_directions_that_hardly_vary_are_left_out(policy: rlm.HookedPolicy) -> None:
    obs = sparse(400)
    obs[:, :16] = 0  # eight numbers in twelve neurons
    found = fit_dictionary(policy, obs, site="0.hook_out", kind="ica", k=8)
    assert len(found) == 8
    dead = rlm.HookedPolicy(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), torch.rand(2, 4))
    with torch.no_grad():
        dead.module[0].weight[0] = 0  # the first neuron: scikit-learn's own whitening then gives NaN
    assert len(fit_dictionary(dead, torch.randn(200, 4), site="0.hook_out", kind="ica", k=2)) == 4
    assert float(found.encoder.abs().max()) < 1e3


def test_what_is_not_explained_stays_when_a_feature_goes(policy: rlm.HookedPolicy, fitted: Dictionary) -> None:
    obs = sparse(50)
    _, cache = policy.run_with_cache(obs, "0.hook_out")
    codes = fitted.codes(policy, obs)
    feature = int(codes[0].argmax())
    for edit, factor in ((fitted.ablate(feature), -1.0), (fitted.scale({feature: 3.0}), 2.0)):
        with policy.edited(edit):
            _, changed = policy.run_with_cache(obs, "0.hook_out")
        wanted = cache["0.hook_out"] + factor * codes[:, feature, None] * fitted.decoder[feature]
        torch.testing.assert_close(changed["0.hook_out"], wanted, atol=1e-5, rtol=0)
    with policy.edited(fitted.steer(feature, 0.7)):
        _, changed = policy.run_with_cache(obs, "0.hook_out")
    wanted = cache["0.hook_out"] + 0.7 * fitted.decoder[feature]
    torch.testing.assert_close(changed["0.hook_out"], wanted, atol=1e-5, rtol=0)
    with policy.edited(fitted.splice("with_error")):
        assert torch.equal(policy(obs), policy.module(obs))
    parts = []
    for how in ("reconstruction", "error_only"):
        with policy.edited(fitted.splice(how)):
            parts.append(policy.run_with_cache(obs, "0.hook_out")[1]["0.hook_out"])
    torch.testing.assert_close(parts[0] + parts[1] - fitted.offset, cache["0.hook_out"], atol=1e-5, rtol=0)


def test_the_effect_of_a_feature_is_what_its_ablation_does(policy: rlm.HookedPolicy, fitted: Dictionary) -> None:
    obs = sparse(300)
    found = feature_effects(policy, fitted, obs, n_states=300)
    feature = int(found["density"].values.argmax())
    with policy.edited(fitted.ablate(feature)):
        change = (policy.module(obs) - policy(obs)).detach()
    change = change - change.mean(1, keepdim=True)
    np.testing.assert_allclose(found["effect"].sel(feature=feature), change.mean(0), atol=1e-5)
    codes = fitted.codes(policy, obs)[:, feature]
    assert int(found["top_state"].sel(feature=feature, rank=0)) == int(codes.argmax())
    assert int(found["n_active"].sel(feature=feature)) == int((codes > 0).sum())
    low, high = found["effect_low"], found["effect_high"]
    assert bool(((low <= found["effect"] + 1e-9) & (found["effect"] <= high + 1e-9)).all())


def test_features_are_neurons_of_the_spliced_policy(policy: rlm.HookedPolicy, fitted: Dictionary) -> None:
    obs = sparse(40)
    inside = spliced(policy, fitted)
    assert torch.equal(inside(obs), policy(obs))
    assert inside.engine == "graph"
    sites = inside.sites("features.active.hook_out", over="neuron")
    swept = rlm.activation_patching(
        inside, clean=obs[:20], corrupt=obs[20:], sites=sites, metric=rlm.metrics.action_gap(0, 1)
    )
    codes = fitted.codes(policy, obs)
    for feature in (0, 5):
        moved = (codes[:20, feature] - codes[20:, feature])[:, None] * fitted.decoder[feature]
        hook = ("0.hook_out", lambda value, hook, moved=moved: value + moved)
        scored = policy.run_with_hooks(obs[20:], fwd_hooks=[hook])
        np.testing.assert_allclose(
            swept["patched"].sel(site=feature), (scored[:, 0] - scored[:, 1]).detach(), atol=1e-4
        )
    again = copy.deepcopy(inside)
    assert torch.equal(again(obs), policy(obs))


def test_positions_share_a_dictionary_where_they_are_vectors_of_their_own() -> None:
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3), networks.scenes(2, n_entities=15, seed=0), spec=networks.SPEC)
    obs = networks.scenes(60, n_entities=15, seed=1)
    site = "others_embedding.relu_1.hook_out"
    found = fit_dictionary(policy, obs, site=site, over="entity", n_features=24, k=3, n_steps=30)
    assert found.codes(policy, obs).shape == (60 * 14, 24)
    inside = spliced(policy, found)
    assert torch.equal(inside(obs), policy(obs))
    neuron = rlm.Site("features.active.hook_out", neuron=3)
    with inside.edited(rlm.zero_ablation(neuron)), policy.edited(found.ablate(3)):
        torch.testing.assert_close(inside(obs), policy(obs))
    one = feature_effects(policy, found, obs, features=[3])
    with policy.edited(found.ablate(3)):
        change = (policy.module(obs) - policy(obs)).detach()
    np.testing.assert_allclose(one["effect"][0], (change - change.mean(1, keepdim=True)).mean(0), atol=1e-5)
    heads = fit_dictionary(policy, obs, site="attention_layer.hook_z", n_features=16, k=4, n_steps=10, over="head")
    assert heads.decoder.shape[1] * policy.point("attention_layer.hook_z").size("head") == 64


def test_a_transcoder_predicts_one_site_from_another(policy: rlm.HookedPolicy) -> None:
    obs = sparse(2000)
    given: dict[str, Any] = {"n_features": 48, "k": 12, "n_steps": 400}
    found = fit_dictionary(policy, obs, site="0.hook_out", into="2.hook_out", **given)
    with policy.hooks(fwd_hooks=splice_hooks(found)):
        spliced_in = policy(obs)
    same = (spliced_in.argmax(1) == policy(obs).argmax(1)).double().mean()
    assert float(same) > 0.8
    with policy.hooks(fwd_hooks=splice_hooks(found, "with_error")):
        assert torch.equal(policy(obs), policy.module(obs))
    with pytest.raises(ConfigError, match="reads one site and writes another"):
        found.ablate(0)
    assert torch.equal(pickle.loads(pickle.dumps(found)).decoder, found.decoder)


def test_features_drive_beside_random_directions() -> None:
    from tests.probes.test_fit import Balancing

    policy = rlm.HookedPolicy(Balancing(), torch.rand(2, 4))
    env = gym.make("CartPole-v1", max_episode_steps=25)
    recording = rlm.record(policy, env, seeds=range(8), progress=False)
    found = fit_dictionary(policy, recording, site="hidden.hook_out", kind="pca", k=4)
    driven = drive_features(
        policy, env, found, features=[0, 1, 2], seeds=range(50, 52), factor=-3.0, n_controls=1, progress=False
    )
    assert driven["control_of"].values.tolist()[:3] == ["", "", "feature 0"]
    own = [float(driven["delta_return"].sel(condition=f"feature {i}")) for i in range(3)]
    assert min(own) < -5
    with pytest.raises(ConfigError, match="no other site"):
        rlm.compare_rollouts(
            policy, env, conditions={"x": [found.ablate(0)]}, controls=["random_site"], seeds=[0], progress=False
        )
    scores = compare_dictionaries(
        policy,
        recording,
        site="hidden.hook_out",
        n_features=16,
        k=4,
        n_steps=20,
        n_fits=2,
        env=env,
        seeds=range(50, 52),
    )
    assert scores.driven is not None
    assert float(scores.driven["delta_return"].sel(condition="pca")) == 0
    assert float(scores.driven["delta_return"].sel(condition="nothing")) < -5


def test_what_cannot_be_fitted_is_refused_in_words(policy: rlm.HookedPolicy, fitted: Dictionary) -> None:
    site: dict[str, Any] = {"site": "0.hook_out"}
    with pytest.raises(ConfigError, match="wider than its data"):
        fit_dictionary(policy, sparse(20), **site)
    with pytest.raises(ConfigError, match="never changes"):
        fit_dictionary(policy, torch.ones(200, N_FEATURES), **site)
    with pytest.raises(ConfigError, match="no dictionary of kind"):
        fit_dictionary(policy, sparse(200), kind="nmf", **site)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no more of them than the site is wide"):
        fit_dictionary(policy, sparse(200), kind="pca", n_features=13, **site)
    with pytest.raises(ConfigError, match="Some features are active"):
        fit_dictionary(policy, sparse(200), n_features=4, k=5, **site)
    with pytest.raises(ConfigError, match="axes that the site leaves whole"):
        fit_dictionary(policy, sparse(200), over="entity", **site)
    with pytest.raises(ConfigError, match="one episode"):
        compare_dictionaries(policy, sparse(200), clusters=np.zeros(200), n_features=20, **site)
    with pytest.raises(ConfigError, match="an environment and seeds"):
        compare_dictionaries(policy, sparse(200), seeds=range(3), n_features=20, **site)
    with pytest.raises(SiteError, match="no feature 99"):
        fitted.ablate(99)
    with pytest.raises(SiteError, match="no feature 99"):
        feature_effects(policy, fitted, sparse(20), features=[99])
    with pytest.raises(ConfigError, match="Features become neurons"):
        spliced(policy, fit_dictionary(policy, sparse(200), kind="pca", k=2, **site))


def test_a_dictionary_is_the_same_after_a_file_and_a_damaged_file_is_none(
    policy: rlm.HookedPolicy, fitted: Dictionary, tmp_path: Path
) -> None:
    several = fit_dictionary(policy, sparse(50), site=rlm.Site("hook_obs", feature=(0, 1, 2)), kind="pca", k=2)
    thresholds = fit_dictionary(policy, sparse(64), site="hook_obs", kind="batch_topk", n_features=8, k=2, n_steps=3)
    transcoder = fit_dictionary(policy, sparse(64), site="hook_obs", into="hook_obs", n_features=8, k=2, n_steps=2)
    for number, one in enumerate((fitted, several, thresholds, transcoder)):
        path = one.save(tmp_path / f"{number}.safetensors")
        again = Dictionary.load(path)
        assert (again.digest, again.layout, again.into) == (one.digest, one.layout, one.into)
        assert (again.n_fitted, again.seed) == (one.n_fitted, one.seed)
        torch.testing.assert_close(again.codes(policy, sparse(4)), one.codes(policy, sparse(4)), rtol=0, atol=0)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="is no dictionary"):
            Dictionary.load(path)
    with pytest.raises(MissingFileError, match="no dictionary at"):
        Dictionary.load(tmp_path / "none")
