"""QK and OV circuits of the trained policy beside those of untrained ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from subjects import BETTER, WORSE, States, untrained

import rlmech as rlm

STATISTICS = ("positivity", "effective_rank", "stable_rank", "norm")
ANY = "vehicle_1"  # of states with one vehicle each: whichever vehicle stands there


def forms(states: States, policy: rlm.HookedPolicy) -> dict[str, xr.Dataset]:
    """Mean QK and OV form of any vehicle, through the gates of the states, OV to every action and to the gap."""
    moved, _, _ = states.one_vehicle_each()
    gap: Any = {"better": BETTER, "worse": WORSE}
    return {
        "QK": rlm.circuits.qk_circuit(policy, obs=moved).sel(entity=ANY),
        "OV": rlm.circuits.ov_circuit(policy, obs=moved).sel(entity=ANY),
        "OV to the gap": rlm.circuits.ov_circuit(policy, obs=moved, **gap).sel(entity=ANY),
    }


def of_one_size(circuit: xr.Dataset) -> xr.DataArray:
    """Each head's form over its own norm, so that forms of very different sizes can be compared."""
    form = circuit.circuit
    norm = np.sqrt((form**2).sum([dim for dim in form.dims if dim != "head"]))
    return (form / norm).rename("share of the head's norm").assign_attrs(units="1")


def how_well_means_stand(found: dict[str, dict[str, xr.Dataset]]) -> dict[str, Any]:
    """In how many states a mean form holds: the commonest gates, and the sign of an entry."""
    numbers: dict[str, Any] = {}
    for who, circuits in found.items():
        for what, circuit in circuits.items():
            over = [dim for dim in circuit.sign_share.dims if dim != "head"]
            numbers[f"{what}, {who}"] = {
                "state-and-vehicle pairs": int(circuit.n_states),
                "different forms": int(circuit.n_forms.max()),
                "share of the commonest form": round(float(circuit.form_share.max()), 4),
                "share with the mean's sign, by head": _rounded(circuit.sign_share.mean(over)),
                "spread over size of the mean, by head": _rounded(
                    np.sqrt((circuit.spread**2).mean(over) / (circuit.circuit**2).mean(over))
                ),
            }
    return numbers


def statistics(policy: rlm.HookedPolicy, n_untrained: int) -> tuple[dict[str, Any], dict[str, xr.Dataset]]:
    """Each head's products of weights, beside Gaussian ones and beside heads of untrained networks."""
    trained = rlm.circuits.circuit_statistics(policy)
    fresh = [rlm.circuits.circuit_statistics(untrained(policy, seed)) for seed in range(n_untrained)]
    several = xr.concat(fresh, "seed", join="outer")
    numbers: dict[str, Any] = {}
    for circuit in ("qk", "ov"):
        for statistic in STATISTICS:
            where = {"circuit": circuit, "statistic": statistic}
            others = several.value.sel(where).values
            numbers[f"{circuit} {statistic}"] = {
                "by head": _rounded(trained.value.sel(where)),
                "percentile among Gaussian ones, by head": _rounded(trained.percentile.sel(where)),
                "untrained, lowest and highest": [round(float(v), 3) for v in (others.min(), others.max())],
            }
    return numbers, {"trained": trained, "untrained": several}


def composition(policy: rlm.HookedPolicy) -> str:
    """The scores between layers, or why there are none."""
    try:
        return str(rlm.circuits.composition_scores(policy).score)
    except rlm.RlmechError as refusal:
        return str(refusal)


def _rounded(values: xr.DataArray) -> list[float]:
    return [round(float(v), 3) for v in values.values.ravel()]
