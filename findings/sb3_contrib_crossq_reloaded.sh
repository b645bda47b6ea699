#!/usr/bin/env bash
# Package: sb3-contrib 2.9.2 (stable-baselines3 2.9.2, torch 2.13.0).
#
# Expected: the actor of a CrossQ model that was loaded from its zip is as it was when it acted: calling it under
#   `torch.no_grad()` gives what `predict` gives and changes nothing.
# Seen: after `load` the actor is in train mode, so that its batch renormalisation uses and updates the statistics of
#   whatever batch it is given. The action of a row then depends on the other rows, and each call changes the buffers of
#   the loaded model. `predict` switches to eval mode first and shows none of it.
#
# Output (the size of the difference varies):
#   training after load: True
#   actor(obs) is what predict gives: False
#   a row's action is the same beside other rows: False
#   buffers unchanged by a call under no_grad: False
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  sb3-contrib==2.9.2 stable-baselines3==2.9.2 gymnasium==1.4.0 numpy==2.4.6

cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import torch
from sb3_contrib import CrossQ

model = CrossQ("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", learning_starts=50, policy_kwargs={"net_arch": [32]})
model.learn(200)
model.save("model")
actor = CrossQ.load("model", device="cpu").policy.actor
fresh = CrossQ.load("model", device="cpu")
obs = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)

training = actor.training
before = {name: value.clone() for name, value in actor.named_buffers()}
with torch.no_grad():
    called = actor(torch.as_tensor(obs), deterministic=True).numpy()
    half = actor(torch.as_tensor(obs[:4]), deterministic=True).numpy()
kept = all(torch.equal(value, before[name]) for name, value in actor.named_buffers())
predicted = fresh.policy.scale_action(fresh.predict(obs, deterministic=True)[0])
same = bool(np.allclose(called, predicted, atol=1e-3))
alone = bool(np.allclose(called[:4], half, atol=1e-3))
print("training after load:", training)
print("actor(obs) is what predict gives:", same)
print("a row's action is the same beside other rows:", alone)
print("buffers unchanged by a call under no_grad:", kept)
if (training, same, alone, kept) != (True, False, False, False):
    raise SystemExit("the behaviour has changed")
PY
