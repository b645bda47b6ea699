"""A small recording of an untrained policy in a true environment, made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech.episodes import Recording, record
from rlmech.nets import EgoAttentionNetwork
from rlmech.simulators import make_env, spec_of


@pytest.fixture(scope="session")
def policy() -> rlm.HookedPolicy:
    torch.manual_seed(3)
    network = EgoAttentionNetwork(7, 3, d_model=16, n_heads=2, embedding=(16, 16), output=(16,))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 3  # so that attention is not even
        network.output_layer.predict.bias -= network(_drive_through()).mean(0)  # so that each action is taken at times
    return rlm.HookedPolicy(network, torch.rand(2, 15, 7), spec=spec_of(make_env("intersection-v2")))


def _drive_through() -> torch.Tensor:
    env = make_env("intersection-v2")
    observations = [env.reset(seed=5)[0], *(env.step(2)[0] for _ in range(8))]
    return torch.as_tensor(np.stack(observations))


@pytest.fixture(scope="session")
def recording(policy: rlm.HookedPolicy, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    path: Path = tmp_path_factory.mktemp("recordings") / "two"
    return record(policy, make_env("intersection-v2"), seeds=[0, 1], names=["*hook_pattern"], path=path, progress=False)
