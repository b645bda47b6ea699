"""Foreign checkpoints and live objects, opened as a `HookedPolicy`.

`load` recognises a file by its content; `from_sb3` and `from_rl_agents` take live objects; `save_policy` writes the
package's own format. Nothing here imports Stable-Baselines3 before a policy of it is opened.
"""
