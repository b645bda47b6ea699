"""Is it used? The direction that carries a variable is erased or pushed for whole episodes, beside random directions.

    erased: nothing that a linear readout of it could find is left      pushed: the target is moved by its spread

What is decodable need not be used, and a push along any direction may disturb: random readouts are erased, and random
vectors of the same length pushed, on the same seeds. Cost: (3 + 2 controls) conditions, with shared simulation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import torch
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.core.edit import Edit
from rlmech.core.interventions import erase, steer
from rlmech.core.policy import HookedPolicy
from rlmech.episodes import compare_rollouts
from rlmech.errors import ConfigError
from rlmech.probes.concepts import Concept
from rlmech.probes.probe import Probe
from rlmech.results import storable

OUTCOME = "return"


@explain_misuse
def is_used(
    policy: HookedPolicy,
    env: gym.Env,
    probe: Probe | Concept,
    *,
    seeds: Iterable[int],
    of: str | None = None,
    push: float = 1.0,
    n_controls: int = 5,
    outcome: str = OUTCOME,
    seed: int = 0,
    **options: Any,
) -> xr.Dataset:
    """Drive with a probe's direction erased and pushed, and with random directions treated alike.

    Args:
        policy: The policy that was probed.
        env: An environment that fits it.
        probe: A probe, or a concept.
        seeds: Seeds of the episodes; not those that the probe was fitted on.
        of: Which class, for a probe of several.
        push: How far, in spreads of the target over the recording (log-odds for a class).
        n_controls: Random directions.
        outcome: What the verdict is about: `return`, or another outcome of the comparison.
        seed: Of the random directions and of the bootstrap.
        **options: Those of `compare_rollouts`: workers, path, when, outcomes…

    Returns:
        As `compare_rollouts`, with the conditions `erased`, `pushed up`, `pushed down` and, for each random direction,
        `erased, random k` and `pushed, random k` as controls (`control_of` names their condition); in the attributes
        `used` (1 where an edit changes the outcome by more than every random direction does, its interval clear of
        zero) and `verdict`: decodable, used, both, or neither.

    Raises:
        ConfigError: No seeds, or a class that is not the probe's.
        EditError, EnvironmentFitError: As of `compare_rollouts`.

    Source:
        Elazar et al. 2021, *Amnesic Probing*, TACL 9; Ravichander et al. 2021, arXiv 2005.00719.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> recording = rlm.record(policy, rlm.make_env("CartPole-v1"), seeds=range(8), progress=False)
        >>> probe = rlm.probes.fit_probe(
        ...     policy, recording, target={"angle": lambda r: r.observations[:, 2]}, sites="0.hook_out"
        ... ).probe()
        >>> result = rlm.probes.is_used(
        ...     policy, rlm.make_env("CartPole-v1"), probe, seeds=range(100, 108), n_controls=2, progress=False
        ... )
        >>> result.attrs["verdict"] in ("decodable", "used", "both", "neither")
        True
    """
    if n_controls < 1:
        raise ConfigError(
            "Use is judged beside random directions.",
            given=f"n_controls={n_controls}",
            expected="1 or more",
            fix="n_controls=5",
        )
    site, shape = probe.site, probe.shape
    normal, moved = torch.as_tensor(probe.normal(of)).reshape(shape), probe.pattern(of).double()
    mean = torch.as_tensor(probe.mean).reshape(shape)
    amount = push * probe.spread
    generator = torch.Generator().manual_seed(seed)
    conditions: dict[str, list[Edit]] = {
        "erased": [erase(site, normal, mean=mean, along=moved)],
        "pushed up": [steer(site, moved, amount)],
        "pushed down": [steer(site, moved, -amount)],
    }
    control_of: dict[str, str] = {}
    for number in range(1, n_controls + 1):
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        spread = torch.as_tensor(probe.covariance) @ drawn.flatten()
        erased, pushed = f"erased, random {number}", f"pushed, random {number}"
        conditions[erased] = [erase(site, drawn, mean=mean, along=spread.reshape(shape))]
        conditions[pushed] = [steer(site, drawn / drawn.norm() * moved.norm(), amount)]
        control_of |= {erased: "erased", pushed: "pushed up"}
    result = compare_rollouts(policy, env, conditions=conditions, seeds=seeds, seed=seed, **options)
    if f"delta_{outcome}" not in result:
        ends = ("_low", "_high", "_se", "_p", "_p_holm")
        told = [str(name)[6:] for name in result if str(name).startswith("delta_") and not str(name).endswith(ends)]
        raise ConfigError(
            f"The comparison has no outcome {outcome!r}.",
            given=repr(outcome),
            expected=f"one of {', '.join(told)}",
            fix="outcome='return'",
        )
    owner = [control_of.get(str(name), "") for name in result["condition"].values]
    result = result.assign_coords(control_of=("condition", owner))
    used = _beyond_controls(result, outcome, control_of)
    decodable = _decodable(probe)
    verdict = {(True, True): "both", (True, False): "decodable", (False, True): "used", (False, False): "neither"}
    told = {"used": used, "decodable": decodable, "verdict": verdict[decodable, used], "verdict_on": outcome}
    return storable(result, told | {"probe": probe.target, "site": str(site), "push": push, "n_controls": n_controls})


def _beyond_controls(result: xr.Dataset, outcome: str, control_of: Mapping[str, str]) -> bool:
    """Whether one of the edits changes the outcome surely, and by more than every random direction of its kind."""
    change = result[f"delta_{outcome}"]
    for name in ("erased", "pushed up", "pushed down"):
        low, high = (float(result[f"delta_{outcome}_{end}"].sel(condition=name)) for end in ("low", "high"))
        like = "erased" if name == "erased" else "pushed up"
        controls = [abs(float(change.sel(condition=other))) for other, owner in control_of.items() if owner == like]
        if (low > 0 or high < 0) and abs(float(change.sel(condition=name))) > max(controls):
            return True
    return False


def _decodable(probe: Probe | Concept) -> bool:
    return isinstance(probe, Concept) or probe.says.startswith("decodable")
