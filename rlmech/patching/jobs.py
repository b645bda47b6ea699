"""Jobs as the methods state them, handed to the engine: sources, a journal, a progress bar, what comes back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rlmech.core.edit import Edit
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.metrics.measure import BoundMetric
from rlmech.patching.sweeps.distinct import run_distinct
from rlmech.patching.sweeps.journal import Journal, digest, function_digest
from rlmech.patching.sweeps.sweep import Job, Source, Swept, run_sweep
from rlmech.progress import progress_bar

Place = str | os.PathLike[str]


def names_of(groups: Sequence[Job]) -> list[str]:
    """The hook points of some jobs."""
    return list(dict.fromkeys(site.name for group in groups for site in group))


def activations_of(policy: HookedPolicy, obs: Observation, groups: Sequence[Job]) -> Source:
    """The activations of a run at all points of some jobs."""
    return run_distinct(policy, obs, names_of(groups))[1]


def edited_activations(policy: HookedPolicy, obs: Observation, edits: dict[str, Edit]) -> Source:
    """What some edits make of the base run's activations."""
    _, cache = run_distinct(policy, obs, list(edits))
    bound = {name: edit.bind(policy.point(name)) for name, edit in edits.items()}
    return {name: replace(cache[name].clone(), hook=policy.point(name)) for name, replace in bound.items()}


def run_groups(
    policy: HookedPolicy,
    obs: Observation,
    groups: Sequence[Job],
    *,
    sources: Sequence[Source],
    metric: BoundMetric,
    what: str,
    source_of: Sequence[int] | None = None,
    journal: Place | None = None,
    progress: bool = False,
) -> Swept:
    """Run some jobs, with a journal and a progress bar.

    Args:
        policy: The policy.
        obs: The base runs' observations.
        groups: The jobs.
        sources: What they put in.
        metric: Bound to the unpatched runs.
        what: The method, for the bar and the journal.
        source_of: The source of each job; None: the first one's for all.
        journal: A directory that keeps what is finished.
        progress: Whether to draw a progress bar.

    Raises:
        ConfigError: The directory cannot be this sweep's journal.
    """
    kept = None
    if journal is not None:
        identity: dict[str, Any] = {
            "policy": policy.fingerprint,
            "observations": digest(policy.coerce(obs, compare=False)),
            "sources": digest([value for source in sources for value in source.values()]),
            "metric": (
                metric.name,
                digest([metric.clean] if metric.corrupt is None else [metric.clean, metric.corrupt]),
                function_digest(metric.measure),
            ),
            "sites": groups,
            "source_of": source_of,
            "method": what,
        }
        kept = Journal(journal, identity=identity)
    with progress_bar(what, len(groups), enabled=progress) as advance:
        return run_sweep(
            policy, obs, groups, sources=sources, metric=metric, source_of=source_of, journal=kept, on_jobs=advance
        )


def no_ops(swept: Swept) -> dict[str, Any]:
    """The variable that says which patches did nothing."""
    return {
        "no_op": (
            ("site", "pair"),
            ~swept.active.numpy(),
            {"long_name": "the replacement cannot have changed anything"},
        )
    }


def scheme(swept: Swept) -> dict[str, str]:
    """The attribute that says how the jobs were run."""
    return {"scheme": ", ".join(f"{n} {name}" for name, n in swept.schemes.items())}
