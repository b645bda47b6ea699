"""Probes: what is planted is found, what is not there is not, and episodes are never split."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rlmech as rlm
from rlmech.errors import ConfigError, RecordingError
from rlmech.nets.untrained import untrained
from rlmech.probes import entities, fit_probe, of_entity, within


class Balancing(nn.Module):
    """Balances the pole: its hidden layer carries the whole observation, the decision reads angle and speed."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 32, bias=False), nn.Linear(32, 2, bias=False)
        carried = torch.linalg.qr(torch.randn(32, 4, generator=torch.Generator().manual_seed(0))).Q
        with torch.no_grad():
            self.hidden.weight.copy_(carried)
            self.head.weight.copy_(torch.tensor([[0.0, 0, -10, -3], [0, 0, 10, 3]]) @ carried.T)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))


@pytest.fixture(scope="module")
def policy() -> rlm.HookedPolicy:
    return rlm.HookedPolicy(Balancing(), torch.rand(2, 4))


@pytest.fixture(scope="module")
def recording(policy: rlm.HookedPolicy) -> rlm.Recording:
    env = gym.make("CartPole-v1", max_episode_steps=60)
    return rlm.record(policy, env, seeds=range(24), progress=False)


def angle(recording: rlm.Recording) -> np.ndarray:
    return recording.observations[:, 2]


def noise(recording: rlm.Recording) -> np.ndarray:
    return np.random.default_rng(0).normal(size=len(recording.observations))


def test_what_stands_at_a_site_is_read_off_it_exactly(policy: rlm.HookedPolicy, recording: rlm.Recording):
    found = fit_probe(policy, recording, target=angle, sites="hidden.hook_out")
    score = found.scores["score"].sel(target="angle", site=0)
    assert float(score.sel(control="trained")) == pytest.approx(1, abs=1e-6)
    assert abs(float(score.sel(control="shuffled"))) < 0.1
    probe = found.probe()
    moved = policy.module.hidden.weight.detach().T @ probe.pattern()  # in the observation's own axes
    assert float(moved[2]) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(probe.predict(policy, recording.observations), angle(recording), atol=1e-3)
    assert "given by the observation" in probe.says


def test_what_is_not_there_is_not_found(policy: rlm.HookedPolicy, recording: rlm.Recording):
    coin = {"noise": noise, "coin": lambda r: noise(r) > 0, "rare": lambda r: noise(r) > 1.2}
    found = fit_probe(policy, recording, target=coin, sites="hidden.hook_out")
    assert (found.table()["says"] == "not decodable").all()
    score = found.scores["score"].sel(site=0, control="trained")
    assert float(score.sel(target="noise")) < 0.02
    assert abs(float(score.sel(target="coin")) - 0.5) < 0.1
    assert abs(float(score.sel(target="rare")) - 0.5) < 0.15  # not the share of the common class


def test_what_belongs_to_an_episode_is_not_learned_from_its_other_steps(
    policy: rlm.HookedPolicy, recording: rlm.Recording
):
    """A split over steps would learn each episode's own number from where its pole stands."""
    own = np.random.default_rng(5).normal(size=100)
    found = fit_probe(
        policy, recording, target={"own": lambda r: own[r.steps["episode"].to_numpy()]}, sites="hidden.hook_out"
    )
    score = found.scores["score"].sel(target="own", site=0)
    assert float(score.sel(control="trained")) < 0.2
    assert float(score.sel(control="episode_mean")) == pytest.approx(1)


def test_a_target_some_steps_later_is_the_target_of_that_step(policy: rlm.HookedPolicy, recording: rlm.Recording):
    steps = recording.steps
    later = fit_probe(policy, recording, target=angle, sites="hidden.hook_out", step_offset=3)
    assert later.scores["target"].values.tolist() == ["angle +3 steps"]
    n_episodes = steps["episode"].nunique()
    assert int(later.scores["n_left_out"].item()) == 3 * n_episodes
    now = fit_probe(policy, recording, target=angle, sites="hidden.hook_out")
    after, before = (float(one.scores["score"].sel(control="trained").item()) for one in (later, now))
    assert after < before


def test_within_tells_the_steps_before_it_happens(recording: rlm.Recording):
    ends = within("truncated", 4)(recording)
    steps = recording.steps
    last = steps.groupby("episode")["step"].transform("max")
    wanted = (last - steps["step"] < 4) & steps.groupby("episode")["truncated"].transform("max")
    assert (ends == wanted.to_numpy()).all()


def test_logistic_probes_agree_with_linear_ones_where_classes_are_apart(
    policy: rlm.HookedPolicy, recording: rlm.Recording
):
    pytest.importorskip("sklearn")
    target = {"left": lambda r: angle(r) < 0}
    for method in ("linear", "logistic"):
        found = fit_probe(
            policy, recording, target=target, sites="hidden.hook_out", method=method, n_controls=1, n_untrained=1
        )
        assert float(found.scores["score"].sel(control="trained").item()) > 0.85, method
        read_of_obs = found.probe().direction("True") @ policy.module.hidden.weight.detach()
        assert float(read_of_obs[2]) < -0.9 * float(read_of_obs.norm()), method


def test_a_vector_along_direction_or_pattern_raises_what_is_read_by_one(
    policy: rlm.HookedPolicy, recording: rlm.Recording
):
    found = fit_probe(
        policy, recording, target={"angle": angle, "left": lambda r: angle(r) < 0}, sites="hidden.hook_out"
    )
    for target in ("angle", "left"):
        probe = found.probe(target)
        for vector in (probe.direction(), probe.pattern()):
            assert float(vector.double().numpy() @ probe.normal()) == pytest.approx(1, rel=1e-5)


def test_the_same_seed_gives_the_same_scores(policy: rlm.HookedPolicy, recording: rlm.Recording):
    one, other = (fit_probe(policy, recording, target="action", sites="hidden.hook_out").scores for _ in range(2))
    assert one.identical(other)


def test_an_untrained_twin_has_other_weights_and_leaves_the_policy_alone(policy: rlm.HookedPolicy):
    before = {name: value.clone() for name, value in policy.module.state_dict().items()}
    twin, again, other = untrained(policy, 1), untrained(policy, 1), untrained(policy, 2)
    assert list(twin.hook_dict) == list(policy.hook_dict)
    assert all(torch.equal(before[name], value) for name, value in policy.module.state_dict().items())
    obs = torch.rand(3, 4)
    assert torch.equal(twin(obs), again(obs))
    assert not torch.equal(twin(obs), other(obs))
    assert not torch.equal(twin(obs), policy(obs))


@pytest.mark.slow
def test_one_value_for_each_entity_is_probed_where_entities_stand():
    policy = rlm.load("zoo:intersection-ego-attention")
    env = rlm.make_env("intersection-v2", config=dict(policy.spec.env_config))
    recording = rlm.record(policy, env, seeds=range(9), progress=False)
    embedding = next(
        name
        for name, point in policy.hook_dict.items()
        if point.kind == "activation"
        and point.axes[1:2] == ("entity",)
        and point.shape[1] == recording.observations.shape[1] - 1
    )
    by_entity = entities("distance")(recording)
    assert by_entity.shape[1] == recording.observations.shape[1]
    found = fit_probe(
        policy,
        recording,
        target={"distance": lambda r: entities("distance")(r)[:, 1:], "first": of_entity("distance", 1)},
        sites=embedding,
        n_folds=3,
        n_untrained=1,
    )
    score = found.scores["score"].sel(site=0, control="trained")
    assert float(score.sel(target="distance")) > 0.5
    assert found.probe("distance").direction().shape == (policy.hook_dict[embedding].shape[-1],)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"target": "anglr"}, "no column"),
        ({"target": "reward"}, "constant"),
        ({"target": lambda r: np.zeros(3)}, "not one value"),
        ({"target": lambda r: r.steps["step"].to_numpy() == 0, "n_folds": 30}, "an episode in each"),
        ({"target": {"once": lambda r: np.arange(len(r.steps)) == 0}}, "missing in a fold"),
        ({"target": angle, "method": "logistic"}, "for classes"),
        ({"target": angle, "method": "quadratic"}, "no method"),
        ({"target": [angle, angle]}, "differ"),
        ({"target": 3}, "column of the steps"),
        ({"target": entities("distance")}, "no table of vehicles"),
        ({"target": {"by entity": lambda r: r.observations[:, :3]}}, "where entities stand"),
    ],
    ids=lambda value: value if isinstance(value, str) else "given",
)
def test_what_cannot_be_probed_is_told(policy: rlm.HookedPolicy, recording: rlm.Recording, options: dict, problem: str):
    with pytest.raises(ConfigError, match=problem):
        fit_probe(policy, recording, sites="hidden.hook_out", **options)


def test_a_recording_of_another_policy_is_refused(recording: rlm.Recording):
    other = rlm.HookedPolicy(nn.Linear(4, 2), torch.rand(2, 4))
    with pytest.raises(RecordingError, match="another policy"):
        fit_probe(other, recording, target=angle)


def test_a_probe_among_several_is_asked_for_by_name(policy: rlm.HookedPolicy, recording: rlm.Recording):
    found = fit_probe(policy, recording, target={"angle": angle, "noise": noise}, sites=["hidden.hook_out", "hook_obs"])
    assert found.probe("angle", "hook_obs").site == rlm.Site("hook_obs")
    assert found.probe("noise", 0).site == rlm.Site("hidden.hook_out")
    with pytest.raises(ConfigError, match="Several probes fit"):
        found.probe("angle")
    with pytest.raises(ConfigError, match="no such probe"):
        found.probe("angel", 0)


def test_the_figure_shows_every_score(policy: rlm.HookedPolicy, recording: rlm.Recording):
    found = fit_probe(policy, recording, target={"angle": angle, "noise": noise}, sites=["hidden.hook_out", "hook_obs"])
    figure = rlm.plot.probe_scores(found.scores)
    assert len(figure.data) == 10
    assert figure.data[0].x[0] == pytest.approx(float(found.scores["score"].isel(target=0, site=0, control=0)))
    with pytest.raises(ConfigError, match="no scores of probes"):
        rlm.plot.probe_scores(found.scores.drop_vars("score"))
