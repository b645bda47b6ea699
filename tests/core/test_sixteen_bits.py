"""Policies in 16 bits: the analyses work, numbers that numpy has not carried as float32."""

import copy

import numpy as np
import pytest
import torch

import rlmech as rlm
from tests import networks as nets

ANALYSES = {
    "activation_patching": lambda p, x: rlm.activation_patching(p, clean=x[:8], corrupt=x[8:]).patched,
    "ablation_sweep": lambda p, x: rlm.ablation_sweep(p, x).patched,
    "attribution_patching": lambda p, x: rlm.attribution_patching(p, clean=x[:8], corrupt=x[8:]).estimate,
    "local_affine": lambda p, x: rlm.attribution.local_affine(p, x).jacobian,
    "margins": lambda p, x: rlm.attribution.local_affine(p, x).margin,
    "attribute_actions": lambda p, x: rlm.attribute_actions(p, x).total,
    "predict": lambda p, x: p.predict(x)[0],
    "predict one": lambda p, x: p.predict(x[0])[0],
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("analysis", ANALYSES)
def test_a_policy_in_16_bits_is_analysed_as_it_is_in_32(analysis, dtype):
    torch.manual_seed(0)
    net, obs = nets.mlp(6, 16, 3), torch.rand(16, 6)
    narrow = copy.deepcopy(net).to(dtype)
    wide = copy.deepcopy(narrow).float()  # the same rounded weights
    obs = obs.to(dtype)
    found, expected = (
        np.asarray(ANALYSES[analysis](rlm.HookedPolicy(module, given), given))
        for module, given in ((narrow, obs), (wide, obs.float()))
    )
    assert np.isfinite(found).all()
    if analysis.startswith("predict"):
        assert (found == expected).mean() >= 0.8  # ties of rounded scores
    else:
        np.testing.assert_allclose(found, expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_policy_in_16_bits_drives_and_is_recorded(dtype):
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(nets.mlp(4, 16, 2).to(dtype), torch.rand(2, 4, dtype=dtype))
    recording = rlm.record(policy, "CartPole-v1", seeds=range(2), names=["1.hook_out"], progress=False)
    scores = policy(torch.as_tensor(recording.observations).to(dtype)).float()
    np.testing.assert_allclose(recording.scores, scores.detach().numpy(), atol=0.02)
    assert recording.activation("1.hook_out").shape == (len(recording.steps), 16)
