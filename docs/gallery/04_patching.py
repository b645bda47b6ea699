"""Where does the information about one vehicle flow?

Two scenes that differ in one vehicle, and activations carried from one run into the other: denoising says which
parts are enough to bring the decision back, noising which are needed for it.
"""

# %%
import numpy as np

import rlmech as rlm

policy = rlm.load("zoo:intersection-ego-attention")
env = rlm.make_env(policy.spec)
states = rlm.record(policy, env, seeds=range(6), progress=False).observations
rows, vehicles = np.nonzero(states[:, 1:, policy.spec.presence_index] >= 0.5)  # every vehicle of every state
clean = states[rows]
corrupt = clean.copy()
corrupt[np.arange(len(rows)), vehicles + 1] = 0  # absent: its presence is 0, so that attention hides it
changed = (policy(clean).argmax(-1) != policy(corrupt).argmax(-1)).numpy()
print(changed.sum(), "of", len(clean), "decisions change when one vehicle is not there")
clean, corrupt = clean[changed], corrupt[changed]

# %% [markdown]
# Denoise: the vehicle stays away, and one head's queries, keys, values, pattern or output are those of the
# run with it. 1 brings the decision's gap back, 0 does nothing.

# %%
parts = [f"*.hook_{part}" for part in ("q", "k", "v", "pattern", "z")]
denoised = rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=policy.sites(parts, over="head"))
rlm.plot.sweep(denoised, title="is it enough? (denoise)")

# %% [markdown]
# Noise: the vehicle stays, and the part is that of the run without it. What is enough need not be needed:
# heads can stand in for each other.

# %%
noised = rlm.activation_patching(
    policy, clean=clean, corrupt=corrupt, sites=policy.sites(parts, over="head"), direction="noise"
)
rlm.plot.sweep(noised, title="is it needed? (noise)")

# %% [markdown]
# A law that must hold: everything patched at once is the other run.

# %%
whole = rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=["hook_obs"])
print(float(np.round(whole["effect"].item(), 6)))
