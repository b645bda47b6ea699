"""Episodes of a published checkpoint, against what its own code met and did."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import rlmech as rlm
from rlmech.episodes import record
from rlmech.simulators import make_env

N_SEEDS = 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
def test_a_published_checkpoint_meets_and_does_what_it_is_known_to(seed_policy_dir: Path) -> None:
    agent, env_config = (next(seed_policy_dir.glob(f"config/**/{name}.json")) for name in ("ego_attention_4h", "env"))
    policy = rlm.load(seed_policy_dir / "model_4h.tar", config=agent, env_config=env_config)
    config = json.loads(env_config.read_text())
    env = make_env(config["id"], config={k: v for k, v in config.items() if k not in ("id", "import_module")})
    recording = record(policy, env, seeds=range(N_SEEDS), progress=False)
    episode = np.load(seed_policy_dir / "episode.npy")  # seed, step, action
    own = episode[:, 0] < N_SEEDS
    assert np.array_equal(recording.steps[["seed", "step", "action"]].to_numpy(), episode[own])
    # the published numbers come from a processor with AVX-512, on which numpy's sines and powers round otherwise
    published = np.load(seed_policy_dir / "observations.npy")[own]
    scores = np.load(seed_policy_dir / "q_values.npy")[own]
    assert np.allclose(recording.observations, published, rtol=0, atol=2e-4)
    assert np.allclose(policy(published).detach().numpy(), scores, atol=1e-5)
    assert np.allclose(recording.scores, scores, atol=1e-3)
