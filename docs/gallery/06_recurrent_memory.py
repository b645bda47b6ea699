"""Where does a policy keep what it remembers?

An LSTM sees a cue in its first step and must answer six steps later. Its state is exchanged between two
episodes after each step; the few units that carry the cue are found, and wiping them alone breaks the episodes.
"""

# %%
import numpy as np

import rlmech as rlm

policy = rlm.load("zoo:cue-recall-lstm")
clean = np.zeros((16, 7, 3), np.float32)  # [pair step feature]: the cue, noise, and the signal to answer
clean[:, :, 1] = np.random.default_rng(0).uniform(-1, 1, (16, 7))
clean[:, 0, 0], clean[:, -1, 2] = 1, 1
corrupt = clean.copy()
corrupt[:, 0, 0] = -1
gap = rlm.metrics.action_gap("RIGHT", "LEFT")

# %% [markdown]
# The hidden state `h`, the cell state `c`, or both, put into the other run after each step.

# %%
h, c = "lstm_actor.hook_h", "lstm_actor.hook_c"
jobs = [[rlm.Site(name, step=step) for name in names] for names in ((h,), (c,), (h, c)) for step in range(7)]
whole = rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=jobs, metric=gap)
for name, effects in zip(("h", "c", "h and c"), whole["effect"].values.reshape(3, 7), strict=True):
    print(f"{name:8s}", np.round(effects, 2))

# %% [markdown]
# The cell state carries it. Unit by unit, after step 3:

# %%
units = rlm.activation_patching(
    policy, clean=clean, corrupt=corrupt, sites=[rlm.Site(c, step=3, neuron=unit) for unit in range(16)], metric=gap
)
order = np.argsort(-units["effect"].values)
rlm.plot.sweep(units, title="single units of the cell state after step 3")

# %% [markdown]
# The proof is an episode: the four strongest units wiped in the middle of it, beside the other twelve.

# %%
few, rest = tuple(int(unit) for unit in order[:4]), tuple(int(unit) for unit in order[4:])
conditions = {
    name: [rlm.zero_ablation(rlm.Site(f"{state}_pre", step=3, neuron=chosen)) for state in (h, c)]
    for name, chosen in (("4 units wiped", few), ("the other 12 wiped", rest))
}
driven = rlm.compare_rollouts(policy, "CueRecall-v0", conditions=conditions, seeds=range(16), progress=False)
rlm.plot.comparison(driven, variables=("return",))
