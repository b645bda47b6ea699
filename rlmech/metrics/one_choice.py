"""Metrics of one of the several choices that a policy makes at once."""

from __future__ import annotations

from dataclasses import replace

from rlmech.errors import MetricError
from rlmech.metrics.measure import Metric, MetricContext, Outputs, RowFunction


def of_choice(metric: Metric, choice: int | str | None) -> Metric:
    """A metric of `[batch action]`, of one of several choices; of a policy with a single one it is left as it is."""

    def prepare(context: MetricContext) -> RowFunction:
        number = _number_of_choice(context, metric.name, choice)
        if number is None:
            return metric.prepare(context)
        own = metric.prepare(
            replace(
                context,
                clean=_narrowed(context.clean, number),
                corrupt=None if context.corrupt is None else _narrowed(context.corrupt, number),
            )
        )
        return lambda outputs, pair: own(_narrowed(outputs, number), pair)

    return replace(metric, name=metric.name if choice is None else f"{metric.name} of {choice}", prepare=prepare)


def _narrowed(outputs: Outputs, choice: int) -> Outputs:
    return Outputs(scores=outputs.scores[:, choice], value=outputs.value)


def _number_of_choice(context: MetricContext, name: str, choice: int | str | None) -> int | None:
    names, scores = context.spec.names("choice"), context.clean.scores
    n_choices = scores.shape[1] if scores.ndim == 3 else 0
    if choice is None and not n_choices:
        return None
    if isinstance(choice, str) and choice in names and n_choices:
        return names.index(choice)
    if isinstance(choice, int) and 0 <= choice < n_choices:
        return choice
    shown = f"one of {', '.join(map(repr, names))}" if names else f"a number from 0 to {n_choices - 1}"
    raise MetricError(
        f"{name} is of one choice, and the policy makes {f'{n_choices} at once' if n_choices else 'one only'}.",
        given=f"choice={choice!r}",
        expected=shown if n_choices else "no choice",
        fix=f"name it: metric=rlm.metrics.action_gap(choice={names[0] if names else 0!r}); or analyse "
        "policy.choice(...) alone"
        if n_choices
        else "leave choice out",
    )
