"""The shipped policies: that they open, act, and are what their cards say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import rlmech as rlm
from rlmech.episodes.episode import run_episode, summary
from rlmech.errors import CheckpointError
from rlmech.simulators.env import make_env
from rlmech.zoo import Card
from rlmech.zoo.cards import POLICY

NAMES = ("cue-recall-lstm", "highway-dqn-mlp", "intersection-ego-attention")
EGO_ATTENTION = "intersection-ego-attention"


def test_three_policies_are_shipped() -> None:
    assert rlm.zoo.names() == NAMES
    table = rlm.zoo.list()
    assert list(table.index) == list(NAMES)
    assert (table["return"] > table["its_return"]).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_policy_opens_with_its_names_and_its_weights(name: str) -> None:
    policy, card = rlm.load(f"zoo:{name}"), rlm.zoo.card(name)
    assert sum(p.numel() for p in policy.module.parameters()) == card.n_parameters
    assert policy.spec.env_id == card.evaluations[0].env_id
    assert policy.engine == "graph"
    assert rlm.zoo.path(name).stat().st_size < 500_000


def test_the_intersection_policy_has_four_heads_over_fifteen_vehicles() -> None:
    policy = rlm.load("zoo:intersection-ego-attention")
    (block,) = policy.attention.values()
    assert (block.n_heads, block.d_model) == (4, 64)
    assert (len(policy.spec.entities), len(policy.spec.features)) == (15, 7)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_complete_and_honest(name: str) -> None:
    card = rlm.zoo.card(name)
    assert card.name == name
    home = card.evaluations[0]
    policy = home.drivers[POLICY]
    assert policy["n"] >= 500
    assert {"random", "untrained", home.best_constant} <= set(home.drivers)
    for driver in home.drivers.values():
        for quantity in ("return", "length", *(["crashed"] if "crashed" in policy else [])):
            assert driver[quantity]["low"] <= driver[quantity]["mean"] <= driver[quantity]["high"]
    assert home.difference["return"]["low"] > 0, "clearly better than the best constant action"
    config = card.config
    validation = range(config["validation_first_seed"], config["validation_first_seed"] + config["validation_episodes"])
    assert not set(validation) & set(range(home.first_seed, home.first_seed + policy["n"]))
    assert card.curve[-1]["step"] >= card.step * 0.9
    library = "highway-env" if "crashed" in policy else "sb3-contrib"
    assert {"torch", "stable-baselines3", library} <= set(card.versions)


def test_a_card_survives_its_file(tmp_path) -> None:
    card = rlm.zoo.card(EGO_ATTENTION)
    card.save(tmp_path / "card.json")
    assert Card.load(tmp_path / "card.json") == card
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(CheckpointError, match="card cannot be read"):
        Card.load(tmp_path / "card.json")


def test_the_ladder_opens_and_climbs() -> None:
    rungs = rlm.zoo.ladder(EGO_ATTENTION)
    assert len(rungs) >= 8
    first, last = (rlm.load(f"zoo:{rung}") for rung in (rungs[0], rungs[-1]))
    assert first.fingerprint != last.fingerprint
    returns = {rung["step"]: rung["return"]["mean"] for rung in rlm.zoo.card(EGO_ATTENTION).ladder}
    assert returns[0] < max(returns.values())
    assert {f"{EGO_ATTENTION}@step_{step:07d}" for step in returns} >= set(rungs)
    assert rlm.zoo.ladder("highway-dqn-mlp") == ()


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("intersection-ego-atention", "did you mean 'intersection-ego-attention'?"),
        ("zzz", "rlm.zoo.list() shows them"),
    ],
)
def test_an_unknown_policy_names_the_nearest(name: str, fix: str) -> None:
    with pytest.raises(CheckpointError, match=f"no policy '{name}'") as caught:
        rlm.zoo.card(name)
    assert caught.value.fix == fix


def test_an_unknown_rung_names_the_nearest() -> None:
    with pytest.raises(CheckpointError, match="no policy 'intersection-ego-attention@step_1'") as caught:
        rlm.zoo.path("intersection-ego-attention@step_1")
    assert "did you mean 'intersection-ego-attention@step_" in caught.value.fix


@pytest.mark.slow
def test_the_intersection_policy_drives_as_its_card_says() -> None:
    card = rlm.zoo.card("intersection-ego-attention")
    policy, env = rlm.load("zoo:intersection-ego-attention"), make_env("intersection-v2")
    first = card.evaluations[0].first_seed
    returns = [
        summary(list(run_episode(env, lambda o: int(policy.predict(o)[0]), seed=first + i)), ())["return"]
        for i in range(30)
    ]
    claimed = card.evaluations[0].drivers[POLICY]["return"]["mean"]
    error = np.std(returns) / np.sqrt(len(returns))
    assert abs(np.mean(returns) - claimed) < 4 * error


@pytest.mark.parametrize(
    "name", [*rlm.zoo.names(), *(step for name in rlm.zoo.names() for step in rlm.zoo.ladder(name))]
)
def test_the_graph_in_a_shipped_file_is_what_tracing_gives_today(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Else it would be opened with yesterday's graph: save_policy(load(file), file) writes it again."""
    monkeypatch.setenv("RLMECH_CACHE", str(tmp_path))
    shipped = rlm.load(f"zoo:{name}")
    monkeypatch.setattr("rlmech.core.graph_file.known_graph", lambda *_: None)
    assert shipped.stored_graph == rlm.load(f"zoo:{name}").stored_graph
    assert json.loads(safe_open(rlm.zoo.path(name), "pt").metadata()["rlmech"])["graph"] == shipped.stored_graph
