"""Every result of a public analysis goes to netCDF and zarr and comes back as it was."""

from __future__ import annotations

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import rlmech as rlm
from rlmech import (
    attribution,
    certify,
    circuits,
    distil,
    edges,
    episodes,
    features,
    patching,
    plot,
    probes,
    scenes,
    similarity,
)
from rlmech.nets import EgoAttentionNetwork
from rlmech.public_names import MODULES
from rlmech.results import storable
from tests import networks

Stored = xr.Dataset | xr.DataArray


@functools.cache
def perceptron() -> rlm.HookedPolicy:
    torch.manual_seed(0)
    spec = rlm.PolicySpec(actions=("LEFT", "RIGHT"))
    return rlm.HookedPolicy(networks.mlp(4, 5, 2), torch.rand(2, 4), spec=spec)


@functools.cache
def ego_attention() -> rlm.HookedPolicy:
    torch.manual_seed(0)
    return rlm.HookedPolicy(EgoAttentionNetwork(7, 3), states(2), spec=networks.SPEC)


@functools.cache
def transformer() -> rlm.HookedPolicy:
    torch.manual_seed(0)
    return rlm.HookedPolicy(networks.Transformer().eval(), states(2))


@functools.cache
def dict_policy() -> rlm.HookedPolicy:
    """A policy whose observation has names that a file may not hold as they are."""

    class Camera(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = networks.mlp(7, 5, 2)

        def forward(self, obs: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.head(torch.cat([obs["car/x"], obs["car/y"]], -1))

    torch.manual_seed(0)
    return rlm.HookedPolicy(Camera(), slashed(2))


def slashed(n: int) -> dict[str, torch.Tensor]:
    return {"car/x": torch.rand(n, 4), "car/y": torch.rand(n, 3)}


def vectors(n: int = 6, *, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 4, generator=torch.Generator().manual_seed(seed))


def states(n: int, *, seed: int = 0) -> torch.Tensor:
    return networks.scenes(n, n_entities=15, seed=seed)


def of_vectors(analysis: Callable[..., Stored], **options: Any) -> Stored:
    return analysis(perceptron(), clean=vectors(), corrupt=vectors(seed=1), **options)


def of_states(analysis: Callable[..., Stored], **options: Any) -> Stored:
    return analysis(ego_attention(), clean=states(4), corrupt=states(4, seed=1), **options)


@functools.cache
def recording(edited: bool = False) -> rlm.Recording:
    edits = [rlm.zero_ablation("1.hook_out")] if edited else []
    return rlm.record(perceptron(), gym.make("CartPole-v1"), seeds=range(5), edits=edits, progress=False)


def compared() -> xr.Dataset:
    return episodes.compare_recordings({"baseline": recording(), "no hidden layer": recording(edited=True)})


@functools.cache
def road() -> tuple[rlm.HookedPolicy, rlm.Scene]:
    policy = rlm.load("zoo:highway-dqn-mlp")
    return policy, rlm.Scene.replay(rlm.make_env("highway-fast-v0"), seed=0, actions=[1])


def pattern_of_a_recording() -> xr.DataArray:
    env = rlm.make_env("intersection-v2", config={"simulation_frequency": 5, "duration": 2})
    policy = rlm.load("zoo:intersection-ego-attention")
    return plot.recorded_pattern(rlm.record(policy, env, seeds=[0], names=["*hook_pattern"], progress=False))


def driven() -> xr.Dataset:
    env = rlm.make_env("intersection-v2", config={"simulation_frequency": 5, "duration": 2})
    policy = rlm.load("zoo:intersection-ego-attention")
    given: dict[str, Any] = {"shares": lambda p, obs: attribution.shapley_values(p, obs)["value"]}
    return attribution.driven_removal(policy, env, attributions=given, seeds=range(2), progress=False)


EVERY_ANALYSIS: dict[str, Callable[[], Stored]] = {
    "attribution.action_lens": lambda: attribution.action_lens(ego_attention(), states(3), reference=states(9, seed=1)),
    "attribution.attribute_actions": lambda: attribution.attribute_actions(ego_attention(), states(3)),
    "attribution.attribute_actions of a dict": lambda: attribution.attribute_actions(dict_policy(), slashed(3)),
    "attribution.attribution_patching": lambda: of_vectors(attribution.attribution_patching, certificate=True),
    "attribution.centre_actions": lambda: attribution.centre_actions(
        attribution.attribute_actions(ego_attention(), states(3))
    ),
    "attribution.deep_lift": lambda: attribution.deep_lift(perceptron(), vectors(), baseline=vectors(1, seed=1)),
    "attribution.direct_action_attribution": lambda: attribution.direct_action_attribution(
        perceptron(), vectors(), "1.hook_out"
    ),
    "attribution.exact_integrated_gradients": lambda: attribution.exact_integrated_gradients(
        perceptron(), vectors(), baseline=vectors(1, seed=1)
    ),
    "attribution.driven_removal": driven,
    "attribution.faithfulness": lambda: attribution.faithfulness(
        perceptron(),
        vectors(),
        attributions={"saliency": lambda p, obs: attribution.saliency(p, obs, better=0, worse=1).attribution},
        players="features",
        n_subsets=2,
    ),
    "attribution.integrated_gradients": lambda: attribution.integrated_gradients(
        perceptron(), vectors(), baseline=vectors(1, seed=1)
    ),
    "attribution.key_feature_effects": lambda: attribution.key_feature_effects(ego_attention(), states(2)),
    "attribution.layer_conductance": lambda: attribution.layer_conductance(
        perceptron(), vectors(), "1.hook_out", baseline=vectors(1, seed=1)
    ),
    "attribution.local_affine": lambda: attribution.local_affine(perceptron(), vectors()),
    "attribution.local_affine of a dict": lambda: attribution.local_affine(dict_policy(), slashed(3)),
    "attribution.neuron_conductance": lambda: attribution.neuron_conductance(
        perceptron(), vectors(), "1.hook_out", neuron=1, baseline=vectors(1, seed=1)
    ),
    "attribution.pattern_effects": lambda: attribution.pattern_effects(ego_attention(), states(2)),
    "attribution.region_margins": lambda: attribution.region_margins(perceptron(), vectors()),
    "attribution.saliency": lambda: attribution.saliency(dict_policy(), slashed(3)),
    "attribution.shapley_interactions": lambda: attribution.shapley_interactions(ego_attention(), states(2)),
    "attribution.shapley_values": lambda: attribution.shapley_values(ego_attention(), states(2)),
    "certify.certified_map": lambda: certify.certified_map(
        rlm.load("zoo:highway-dqn-mlp"),
        torch.ones(1, 5, 5) / 2,
        over={"vx": [0.0, 1.0], "x": [9.0, 10.0, 11.0]},
        entity=1,
        n_boxes=2,
    ),
    "certify.certified_radius": lambda: certify.certified_radius(
        ego_attention(), states(1), move=certify.Move(features=["x"]), over="entity", limit=0.1, n_boxes=0
    ),
    "certify.check": lambda: certify.check(perceptron(), vectors(3), box=0.01, claim=certify.Never("LEFT"), n_boxes=4),
    "certify.score_bounds": lambda: certify.score_bounds(
        ego_attention(), states(3), box=certify.Move(features=["x"], entities=[1])
    ),
    "circuits.circuit_statistics": lambda: circuits.circuit_statistics(ego_attention(), n_controls=5),
    "circuits.composition_scores": lambda: circuits.composition_scores(transformer(), obs=states(1), n_controls=5),
    "circuits.ov_circuit": lambda: circuits.ov_circuit(ego_attention(), obs=states(5)),
    "circuits.ov_circuit of weights": lambda: circuits.ov_circuit(ego_attention(), space="model"),
    "circuits.ov_forms": lambda: circuits.ov_forms(ego_attention(), states(2)),
    "circuits.path_expansion": lambda: circuits.path_expansion(transformer(), states(2)),
    "circuits.qk_circuit": lambda: circuits.qk_circuit(ego_attention(), obs=states(5)),
    "circuits.qk_circuit of weights": lambda: circuits.qk_circuit(ego_attention(), space="model"),
    "circuits.qk_forms": lambda: circuits.qk_forms(ego_attention(), states(2)),
    "edges.causal_scrubbing": lambda: edges.causal_scrubbing(
        perceptron(), obs=vectors(), hypothesis=found(), n_draws=2
    ),
    "edges.discover_circuit": lambda: found().dataset,
    "edges.edge_attribution": lambda: of_vectors(edges.edge_attribution),
    "edges.edge_patching": lambda: of_vectors(edges.edge_patching),
    "edges.path_patching": lambda: of_vectors(edges.path_patching, sender="hook_obs", receiver="1.hook_out"),
    "edges.score_discovery": lambda: edges.score_discovery({"and": rlm.testbed.and_gate()}, methods=["eap noise"]),
    "edges.score_edges": lambda: edges.score_edges(rlm.testbed.and_gate(), methods=["eap noise"]),
    "edges.Circuit.evaluate": lambda: of_vectors(found().evaluate, n_controls=2),
    "episodes.compare_recordings": compared,
    "episodes.compare_rollouts": lambda: episodes.compare_rollouts(
        perceptron(),
        gym.make("CartPole-v1"),
        conditions={"no neuron 0": [rlm.zero_ablation(rlm.Site("1.hook_out", neuron=0))]},
        controls=["random_site"],
        n_controls=1,
        seeds=range(4),
        progress=False,
    ),
    "episodes.dose_response": lambda: episodes.dose_response(
        perceptron(),
        gym.make("CartPole-v1"),
        site="1.hook_out",
        vector=torch.ones(5),
        coefficients=[0.0, 1.0],
        seeds=range(4),
        progress=False,
    ),
    "episodes.seeds_needed": lambda: episodes.seeds_needed(compared(), half_width=1.0),
    "features.align_subspace": lambda: (
        features.align_subspace(
            perceptron(),
            features.InterchangePairs(base=vectors(40), source=vectors(40, seed=1), expected=[0, 1] * 20),
            site="1.hook_out",
            sizes=[1],
            n_steps=2,
            n_controls=1,
        ).result
    ),
    "features.compare_dictionaries": lambda: (
        features.compare_dictionaries(perceptron(), vectors(200), site="1.hook_out", k=2, n_steps=2, n_fits=2).result
    ),
    "features.drive_features": lambda: features.drive_features(
        perceptron(),
        gym.make("CartPole-v1"),
        dictionary(),
        features=[0],
        seeds=range(4),
        n_controls=1,
        progress=False,
    ),
    "features.feature_effects": lambda: features.feature_effects(perceptron(), dictionary(), vectors(40)),
    "patching.ablation_sweep": lambda: patching.ablation_sweep(perceptron(), vectors()),
    "patching.ablation_sweep of groups": lambda: patching.ablation_sweep(
        perceptron(), vectors(), sites=patching.sliding_windows(perceptron().sites("1.hook_out", over="neuron"), size=2)
    ),
    "patching.activation_patching": lambda: of_vectors(patching.activation_patching),
    "patching.activation_patching of attention": lambda: of_states(patching.activation_patching),
    "patching.activation_patching both ways": lambda: of_vectors(patching.activation_patching, direction="both"),
    "patching.interchange_intervention": lambda: patching.interchange_intervention(
        perceptron(), base=vectors(), source=vectors(seed=1), site="1.hook_out", basis=torch.eye(5)[:2]
    ),
    "patching.off_manifold_distance": lambda: patching.off_manifold_distance(
        perceptron(), base=vectors(), reference=vectors(40, seed=1), source=vectors(seed=2)
    ),
    "patching.pairwise_interactions": lambda: of_vectors(patching.pairwise_interactions),
    "patching.steering_sweep": lambda: patching.steering_sweep(
        perceptron(), vectors(), site="1.hook_out", vector=torch.ones(5), coefficients=[0.0, 1.0]
    ),
    "plot.recorded_pattern": pattern_of_a_recording,
    "distil.distil": lambda: (
        distil.distil(
            perceptron(), gym.make("CartPole-v1"), seeds=range(2), test_seeds=range(5, 9), sizes=[2], n_rounds=1
        ).result
    ),
    "probes.concept_sensitivity": lambda: probes.concept_sensitivity(
        perceptron(), vectors(40), concept(), reference=vectors(40), metric=rlm.metrics.action_score(0)
    ),
    "probes.fit_probe": lambda: angle_probe().scores,
    "probes.is_used": lambda: probes.is_used(
        perceptron(),
        gym.make("CartPole-v1"),
        angle_probe().probe(),
        seeds=range(100, 106),
        n_controls=2,
        progress=False,
    ),
    "probes.planning": lambda: probes.planning(
        perceptron(),
        rlm.record(perceptron(), gym.make("CartPole-v1"), seeds=range(8), progress=False),
        target=lambda r: r.observations[:, 2],
        horizon=2,
        sites="1.hook_out",
        n_controls=1,
        n_untrained=1,
    ),
    "scenes.Decision.scores": lambda: road()[1].decide(road()[0]).scores,
    "scenes.Scene.pair": lambda: road()[1].pair(remove=1),
    "scenes.scene_field": lambda: scenes.scene_field(
        *road(), over={"speed": [20.0, 25.0], "along": [0.0, 5.0]}, edited=road()[1].remove(1)
    ),
    "scenes.smallest_change": lambda: scenes.smallest_change(*road(), vehicles=[0], quantities=["along"], n_grid=4),
    "similarity.compare_policies": lambda: similarity.compare_policies(
        perceptron(), perceptron(), vectors(60), n_neighbours=3
    ),
    "similarity.joint_dictionary": lambda: similarity.joint_dictionary(
        perceptron(), perceptron(), vectors(60), site="1.hook_out", n_features=8, k=2, n_steps=2
    ),
    "similarity.stitch": lambda: similarity.stitch(
        perceptron(),
        perceptron(),
        vectors(60),
        site="1.hook_out",
        env=gym.make("CartPole-v1"),
        seeds=range(4),
    ),
}


@functools.cache
def dictionary() -> features.Dictionary:
    return features.fit_dictionary(perceptron(), vectors(200), site="1.hook_out", k=2, n_steps=2)


@functools.cache
def found() -> rlm.edges.Circuit:
    return edges.discover_circuit(perceptron(), clean=vectors(20), corrupt=vectors(20, seed=1), n_controls=2)


def concept() -> probes.Concept:
    seen = vectors(40)
    return probes.concept_direction(
        perceptron(), positive=seen + torch.tensor([1.0, 0, 0, 0]), negative=seen, site="hook_obs"
    )


@functools.cache
def angle_probe() -> probes.Probes:
    seen = rlm.record(perceptron(), gym.make("CartPole-v1"), seeds=range(8), progress=False)
    return probes.fit_probe(perceptron(), seen, target={"angle": lambda r: r.observations[:, 2]}, sites="1.hook_out")


def test_every_public_function_that_returns_a_dataset_is_in_the_table():
    names: set[str] = set()
    for module in MODULES:
        package = importlib.import_module(f"rlmech.{module}")
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isfunction(value) and inspect.signature(value).return_annotation in (
                "xr.Dataset",
                "xr.DataArray",
                "Circuit",
            ):
                names.add(f"{module}.{name}")
    assert names - {name.split(" ")[0] for name in EVERY_ANALYSIS} == set()


def there_and_back(result: xr.Dataset, folder: Path, engine: str) -> xr.Dataset:
    if engine == "zarr":
        with warnings.catch_warnings():  # of zarr itself: texts of fixed width are not yet in its specification
            warnings.simplefilter("ignore")
            result.to_zarr(folder / "result.zarr")
            return xr.open_zarr(folder / "result.zarr", chunks=None).load()
    result.to_netcdf(folder / "result.nc", engine=engine)
    with xr.open_dataset(folder / "result.nc", engine=engine) as read:
        return read.load()


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_ANALYSIS)
def test_the_result_of_an_analysis_comes_back_from_each_file_format_identical(name: str, tmp_path: Path):
    result = EVERY_ANALYSIS[name]()
    dataset = result.to_dataset(name="values") if isinstance(result, xr.DataArray) else result
    for variable in dataset.variables.values():
        assert variable.dtype.kind in "biufU", variable.dtype
    for engine in ("h5netcdf", "netcdf4", "scipy", "zarr"):
        folder = tmp_path / engine
        folder.mkdir()
        read = there_and_back(dataset, folder, engine)
        xr.testing.assert_identical(read, dataset)
        for variable in dataset.variables:
            kind = read[variable].dtype.kind.replace("O", "U")  # scipy's reader gives texts as Python's own
            assert kind == dataset[variable].dtype.kind, (engine, variable)
        for said in (dataset, *(dataset[variable] for variable in dataset.variables)):
            assert {type(value) for value in said.attrs.values()} <= {int, float, str}


def test_what_no_file_holds_becomes_a_number_or_a_text():
    attrs = {"none": None, "yes": True, "list": ["a", 1], "map": {"b": np.int64(2)}, "array": np.arange(2)}
    given = xr.Dataset({"a/b": ("x/y", np.array(["t", None, 3], dtype=object), attrs)}, attrs=attrs)
    stored = storable(given)
    assert stored["a.b"].values.tolist() == ["t", "", "3"]
    assert stored["a.b"].dims == ("x.y",)
    expected = {"none": "null", "yes": 1, "list": '["a", 1]', "map": '{"b": "2"}', "array": "[0, 1]"}
    assert stored.attrs == expected == stored["a.b"].attrs
    assert given.attrs["yes"] is True, "what was given stays as it is"
