"""Policies of Stable-Baselines3 and sb3-contrib, from zips and live models.

`algorithms` is the one table of what is known: to add an algorithm, add a record there. `scores` holds the modules from
observations to scores, `plan` what a policy is rebuilt from, `zip_file` what a zip says in clear, `opening` the doors.
"""

from rlmech.adapters.sb3.opening import from_sb3, open_plan, open_zip, plan_of

__all__ = ["from_sb3", "open_plan", "open_zip", "plan_of"]
