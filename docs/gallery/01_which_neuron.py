"""Which neuron makes it change lane?

Every neuron of a highway DQN is taken out, one at a time, in states that the policy drove into itself; the one
that changes most decisions is then taken out while it drives. Single decisions and whole episodes are two
different questions.
"""

# %%
import rlmech as rlm

policy = rlm.load("zoo:highway-dqn-mlp")
env = rlm.make_env(policy.spec)
recording = rlm.record(policy, env, seeds=range(3), progress=False)
print(len(recording.observations), "states;", [name for name in policy.hook_dict if "hook_out" in name])

# %% [markdown]
# One call takes out every neuron of the last hidden layer: each is set to its mean over the recorded states
# ("mean ablation"), and the metric is the share of states in which another action becomes the best. Intervals
# resample whole episodes, because the states of one episode resemble each other.

# %%
layers = [name for name in policy.hook_dict if policy.hook_dict[name].kind == "activation"]
sites = policy.sites(layers[-1], over="neuron")
result = rlm.ablation_sweep(
    policy,
    recording.observations,
    sites=sites,
    metric=rlm.metrics.action_flip(),
    clusters=recording.steps["episode"].to_numpy(),
)
order = result["effect"].argsort().values[::-1]
table = result[["effect", "effect_low", "effect_high"]].isel(site=order[:5]).to_dataframe()
table[["neuron", "effect", "effect_low", "effect_high"]].round(3)

# %% [markdown]
# Which actions does the strongest neuron speak for? Its effect on each action's score, less the part that all
# actions share, since a common shift decides nothing.

# %%
strongest = sites[order[0]]
direct = rlm.attribution.direct_action_attribution(policy, recording.observations, strongest)
contribution = direct["contribution"].mean("batch").isel(neuron=0)
for action, value in zip(policy.spec.actions, contribution.values - contribution.values.mean(), strict=True):
    print(f"{action:12s} {value:+.2f}")

# %% [markdown]
# Does it matter on the road? The same edit acts in whole episodes, beside the unedited policy on the same
# seeds. Three seeds are few: read the interval before the number.

# %%
driven = rlm.compare_rollouts(
    policy, env, conditions={"without it": [rlm.zero_ablation(strongest)]}, seeds=range(3), progress=False
)
rlm.episodes.comparison_table(driven)

# %%
rlm.plot.comparison(driven, variables=("return", "length"))
