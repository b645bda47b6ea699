"""The atlas over a folder: a row a policy, gone on with, and words where an agent does not run."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from typer.testing import CliRunner

import rlmech as rlm
from rlmech.atlas.agents import name_of, random_episodes
from rlmech.atlas.methods import MIRRORS, linear_map
from rlmech.atlas.tables import TABLES
from rlmech.cli import app
from rlmech.nets.untrained import untrained

NETS = {"net_arch": [6, 5]}


@pytest.fixture(scope="module")
def zips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three agents as RL Zoo lays them out: two that were hardly trained, and one whose environment there is not."""
    folder = tmp_path_factory.mktemp("zips")
    for algorithm, cls in (("ppo", PPO), ("dqn", DQN)):
        model = cls("MlpPolicy", "CartPole-v1", policy_kwargs=NETS, seed=3, device="cpu")
        lay(folder / algorithm / "CartPole-v1_1" / "CartPole-v1", model, "CartPole-v1")
    model = PPO("MlpPolicy", "Pendulum-v1", policy_kwargs=NETS, device="cpu")
    lay(folder / "ppo" / "Nowhere-v1_1" / "Nowhere-v1", model, "Nowhere-v1")
    return folder


def lay(run: Path, model: PPO | DQN, env_id: str) -> None:
    """Write a run as RL Zoo does."""
    run.mkdir(parents=True)
    model.save(run.with_suffix(".zip") if "." not in run.name else run.parent / f"{run.name}.zip")
    (run / "config.yml").write_text("normalize: false\npolicy: MlpPolicy\nn_timesteps: 0\n")
    (run / "args.yml").write_text(f"env: {env_id}\n")


@pytest.fixture(scope="module")
def made(zips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, pd.DataFrame]]:
    out = tmp_path_factory.mktemp("atlas")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return out, rlm.atlas.map_policies(zips, out, sizes=rlm.atlas.Sizes.quick(), progress=False)


@pytest.mark.slow
def test_every_agent_has_its_row_in_every_table_or_a_word_why_not(made):
    _, tables = made
    who = tables["identity"].set_index("policy")
    assert set(who.index) == {"ppo CartPole-v1", "dqn CartPole-v1", "ppo Nowhere-v1"}
    assert "Nowhere" in who.loc["ppo Nowhere-v1", "problem"]
    for table in ("units", "loops", "methods"):
        assert set(tables[table]["policy"]) == {"ppo CartPole-v1", "dqn CartPole-v1"}
    assert len(tables["pairs"]) == 1
    assert len(tables["neurons"]) == 2 * (6 + 5)


@pytest.mark.slow
def test_tables_are_written_as_csv_and_parquet_that_say_the_same(made):
    out, tables = made
    for name in (*TABLES, "neurons"):
        csv, parquet = pd.read_csv(out / f"{name}.csv"), pd.read_parquet(out / f"{name}.parquet")
        assert list(csv.columns) == list(parquet.columns) == list(tables[name].columns)
        assert len(csv) == len(parquet) == len(tables[name])


@pytest.mark.slow
def test_shares_lie_between_none_and_all_and_have_their_untrained_twin(made):
    _, tables = made
    for name in ("silent", "kept_share", "rank_2", "dimension_last"):
        for column in (name, f"{name}_untrained"):
            assert (tables["units"][column] >= 0).all()
    assert (tables["units"]["silent"] <= 1).all()
    assert tables["methods"]["first_order_denoise_2"].dropna().to_numpy() == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_a_second_call_makes_nothing_again_and_another_size_does(made, zips):
    out, _ = made
    rows = {path: path.read_bytes() for path in (out / "rows").rglob("*.json")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rlm.atlas.map_policies(zips, out, sizes=rlm.atlas.Sizes.quick(), tables=["units", "loops"], progress=False)
    assert rows == {path: path.read_bytes() for path in (out / "rows").rglob("*.json")}
    made_of = json.loads(next(iter(rows.values())))["made_of"]
    assert made_of["sizes"]["n_states"] == 100


@pytest.mark.slow
def test_answers_are_means_over_policies(made):
    out, tables = made
    told = rlm.atlas.answers(out).set_index(["question", "asked", "algorithm"])
    silent = told.loc[(1, "share of single units without which no greedy action changes", "all")]
    assert silent["mean"] == pytest.approx(tables["units"]["silent"].mean())
    assert silent["n"] == 2
    assert pd.isna(silent["low"])  # two policies are too few for an interval


@pytest.mark.slow
def test_the_command_goes_on_with_what_is_there(made, zips):
    out, _ = made
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = CliRunner().invoke(
            app, ["atlas", "--zips", str(zips), "--out", str(out), "--quick", "--tables", "units", "--json"]
        )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["n_ran"] == 2


def test_a_folder_without_agents_and_a_table_that_is_none_are_refused(tmp_path, zips):
    with pytest.raises(rlm.RlmechError, match="no agents"):
        rlm.atlas.map_policies(tmp_path, tmp_path / "out")
    with pytest.raises(rlm.RlmechError, match="no table 'unit'"):
        rlm.atlas.map_policies(zips, tmp_path / "out", tables=["unit"])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("ppo/CartPole-v1_1/CartPole-v1.zip", ("ppo CartPole-v1", "ppo")),
        ("flat/dqn-CartPole-v1.zip", ("dqn flat/dqn-CartPole-v1", "dqn")),
        ("mine.zip", ("mine", "")),
    ],
)
def test_an_agent_is_named_by_its_folders(path, name):
    assert name_of(Path("zips") / path, Path("zips")) == name


@pytest.mark.parametrize("task", sorted(MIRRORS))
def test_a_mirror_twice_is_no_mirror(task):
    mirror = MIRRORS[task]
    raw = np.random.default_rng(0).standard_normal((5, len(mirror.signs)))
    assert np.allclose(mirror.of(mirror.of(raw)), raw)
    if all(float(one).is_integer() and one >= 0 for one in mirror.actions):  # discrete: a permutation of order two
        actions = [int(one) for one in mirror.actions]
        assert [actions[one] for one in actions] == list(range(len(actions)))


@pytest.mark.parametrize("task", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1"])
def test_the_dynamics_of_a_mirrored_state_are_mirrored(task):
    """Ground truth for the mirrors: one step of the simulator from a state and from its mirror."""
    mirror, env = MIRRORS[task.removesuffix("-v1")], rlm.make_env(task).unwrapped
    raw = env.reset(seed=1)[0]
    state = np.array(env.state)
    action = 0 if task != "Pendulum-v1" else np.array([0.7], dtype=np.float32)
    other = int(mirror.actions[0]) if task != "Pendulum-v1" else action * np.float32(mirror.actions[0])
    after = env.step(action)[0]
    env.reset(seed=1)
    env.state = -state
    assert np.allclose(env.step(other)[0], mirror.of(after[None])[0], atol=1e-6)
    assert raw.shape == (len(mirror.signs),)


def test_a_linear_rule_is_found_again_by_the_linear_map():
    raw = np.random.default_rng(0).normal(5, 2, (400, 3))
    truth = raw @ np.array([[1.0, 0, -1], [0, 2, 0], [0, 0, 1]]) + np.array([0.0, -8, 5])
    weight, bias = linear_map(raw, truth.argmax(1), n_actions=3)
    assert ((raw @ weight + bias).argmax(1) == truth.argmax(1)).mean() > 0.98
    weight, bias = linear_map(raw, truth, n_actions=0)
    assert np.allclose(raw @ weight + bias, truth)


def test_an_action_that_is_never_done_is_never_told():
    raw = np.random.default_rng(0).normal(size=(50, 2))
    weight, bias = linear_map(raw, np.where(raw[:, 0] > 0, 3, 1), n_actions=4)
    assert set((raw @ weight + bias).argmax(1)) == {1, 3}


def test_random_episodes_follow_from_their_seeds():
    env = rlm.make_env("CartPole-v1")
    first, again = (random_episodes(env, range(3, 6)) for _ in range(2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert len(random_episodes(env, range(1), n_steps=200)[1]) >= 200


@pytest.mark.parametrize("orthogonal", [True, False])
def test_an_untrained_actor_critic_begins_as_stable_baselines3_begins(orthogonal):
    """Without biases and with orthogonal columns where it was told to; else as torch does."""
    kwargs = NETS | {"ortho_init": orthogonal}
    twin = untrained(rlm.HookedPolicy.from_sb3(PPO("MlpPolicy", "CartPole-v1", policy_kwargs=kwargs, device="cpu")), 1)
    network = twin.module.get_submodule("policy")
    assert isinstance(network, ActorCriticPolicy)
    first, last = network.mlp_extractor.policy_net[0], network.action_net
    assert bool((first.bias == 0).all()) is orthogonal
    columns = first.weight.T @ first.weight
    assert torch.allclose(columns, 2 * torch.eye(4), atol=1e-5) is orthogonal
    assert (float(last.weight.detach().norm()) < 0.02) is orthogonal
