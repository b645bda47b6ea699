"""What a metric is: bound once to the unpatched runs, it gives one number per row of a policy's outputs.

    bound = bind(action_gap(), policy, clean=clean, corrupt=corrupt)
    bound.clean, bound.corrupt                          # [pair], in bound.unit
    bound(scores, pair=pair)                            # [batch], row i belongs to pair[i]

The unpatched runs fix a metric's actions and reference distributions. Any function `fn(scores, context) -> [batch]`
is a metric too. Nothing here runs a policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlmech.errors import MetricError, nearest
from rlmech.spec import PolicySpec

SCORE_UNITS = {"q_values": "return", "logits": "nat", "mean_action": "action"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What a policy gave for a batch: its action scores, and its state value where it has that head."""

    scores: Float[Tensor, "batch *choice action"]
    value: Float[Tensor, " batch"] | None = None

    def rows(self, index: Int[Tensor, " rows"]) -> Outputs:
        """The outputs of the given rows, in that order."""
        return Outputs(scores=self.scores[index], value=None if self.value is None else self.value[index])


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricContext:
    """What a metric may know beside the scores that it measures; all batches are aligned row by row.

    Attributes:
        clean: The unpatched clean run (for an ablation, the unedited run).
        corrupt: The unpatched corrupt run; None where there is one run only.
        value: The measured rows' own state value; None where the policy has no such head.
        output_kind: `q_values`, `logits` or `mean_action`.
        spec: The policy's names and units.
    """

    clean: Outputs
    corrupt: Outputs | None
    value: Float[Tensor, " batch"] | None
    output_kind: str
    spec: PolicySpec

    def action(self, name: int | str) -> int:
        """Position of an action given by name or number.

        Raises:
            MetricError: The policy has no such action.
        """
        return self.spec.action_number(name, n_actions=self.clean.scores.shape[-1])


Reads = Literal["scores", "value", "both"]
MetricFunction = Callable[[Tensor, MetricContext], Tensor]
RowFunction = Callable[[Outputs, Tensor], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearMeasure:
    """What measures rows by a weighted sum of their scores: sweeps then need the sum alone, and not the scores.

    Attributes:
        weights: Of the scores, for each pair, or one row for all.
        measure: The measure itself.
    """

    weights: Float[Tensor, "pair_or_one action"]
    measure: RowFunction

    def __call__(self, outputs: Outputs, pair: Tensor) -> Any:
        """The measure of some rows."""
        return self.measure(outputs, pair)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A named measure of a policy's outputs; `bind` gives it the unpatched runs.

    Attributes:
        name: What the results call it.
        unit: Its unit; None for the unit of the policy's scores (return for Q-values, nat for logits).
        prepare: Takes the context of all pairs, and gives the function of (outputs, pair of each row) that measures.
        differentiable: Whether a gradient of it says anything; attributions refuse a metric that has none.
        reads: Which outputs it looks at: `sites="auto"` leaves out what none of them depends on.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> spread = rlm.metrics.Metric.of(lambda scores, context: scores.amax(-1) - scores.amin(-1), name="spread")
        >>> rlm.ablation_sweep(policy, torch.rand(8, 4), metric=spread).attrs["metric"]
        'spread'
    """

    name: str
    unit: str | None
    prepare: Callable[[MetricContext], RowFunction]
    differentiable: bool = True
    reads: Reads = "scores"

    @classmethod
    def of(cls, function: MetricFunction, *, name: str | None = None, unit: str = "") -> Metric:
        """Make a metric of a plain function `fn(scores [batch action], context) -> [batch]`.

        Example:
            >>> import torch
            >>> from rlmech.metrics.measure import Metric
            >>> spread = Metric.of(lambda scores, context: scores.amax(-1) - scores.amin(-1), name="spread", unit="Q")
            >>> spread.name, spread.unit
            ('spread', 'Q')
        """

        def prepare(context: MetricContext) -> RowFunction:
            def measure(
                outputs: Outputs, pair: Tensor
            ) -> object:  # what a user's function gives is checked by the caller
                corrupt = None if context.corrupt is None else context.corrupt.rows(pair)
                clean = context.clean.rows(pair)
                return function(outputs.scores, replace(context, clean=clean, corrupt=corrupt, value=outputs.value))

            return measure

        label = name or getattr(function, "__name__", "metric")
        return cls(name=label, unit=unit, prepare=prepare, reads="both")  # the context gives it the value too


@runtime_checkable
class ScoringPolicy(Protocol):
    """What a metric reads of a policy."""

    @property
    def output_kind(self) -> str:
        """`q_values`, `logits` or `mean_action`."""
        ...

    @property
    def spec(self) -> PolicySpec:
        """The names and units of its observations and actions."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundMetric:
    """A metric with its unpatched runs; made by `bind`.

    Attributes:
        name: The metric's name.
        unit: Its unit on this policy.
        clean: The metric of the clean runs, per pair.
        corrupt: The metric of the corrupt runs, per pair; None where there is one run only.
        differentiable: Whether attributions may use it.
    """

    name: str
    unit: str
    clean: Float[Tensor, " pair"]
    corrupt: Float[Tensor, " pair"] | None
    differentiable: bool
    measure: RowFunction

    @property
    def weights(self) -> Float[Tensor, "pair_or_one action"] | None:
        """Of the scores, for each pair or one row for all, where the metric is their weighted sum; else None."""
        return self.measure.weights if isinstance(self.measure, LinearMeasure) else None

    def checked(self, values: Tensor) -> Tensor:
        """Values of some rows, one number each, none of them NaN.

        Raises:
            MetricError: They are something else.
        """
        return _checked(self.name, values, n_rows=len(values))

    def __call__(
        self,
        scores: Float[Tensor, "batch *choice action"],
        *,
        pair: Int[Tensor, " batch"] | None = None,
        value: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Measure rows; row i belongs to `pair[i]` (None: the rows are the pairs, in order).

        Raises:
            MetricError: The metric gave another shape than one number per row, or NaN.
        """
        pair = torch.arange(scores.shape[0], device=scores.device) if pair is None else pair
        return _checked(self.name, self.measure(Outputs(scores=scores, value=value), pair), n_rows=scores.shape[0])


def bind(
    metric: Metric | MetricFunction, policy: ScoringPolicy, *, clean: Outputs, corrupt: Outputs | None = None
) -> BoundMetric:
    """Give a metric the unpatched runs: they fix its actions, and it measures them at once.

    Args:
        metric: A metric, or a plain function `fn(scores, context) -> [batch]`.
        policy: The policy that gave the outputs.
        clean: The clean runs' outputs, one row per pair (for an ablation, the unedited runs').
        corrupt: The corrupt runs' outputs, one row per pair; None where there is one run only.

    Raises:
        MetricError: The metric does not fit the policy, or measures the unpatched runs as NaN.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from rlmech.metrics.measure import Outputs, bind
        >>> from rlmech.metrics.score_metrics import action_gap
        >>> from rlmech.spec import PolicySpec
        >>> policy = SimpleNamespace(output_kind="q_values", spec=PolicySpec(actions=("SLOWER", "FASTER")))
        >>> clean = Outputs(scores=torch.tensor([[1.0, 3.0]]))
        >>> bind(action_gap("FASTER", "SLOWER"), policy, clean=clean).clean
        tensor([2.])
    """
    metric = as_metric(metric)
    if corrupt is not None and corrupt.scores.shape != clean.scores.shape:
        raise MetricError(
            "Clean and corrupt runs do not pair up.",
            given=f"scores {list(clean.scores.shape)} and {list(corrupt.scores.shape)}",
            expected="one row of each per pair, and the same actions",
            fix="give as many corrupt observations as clean ones",
        )
    clean, corrupt = _detached(clean), None if corrupt is None else _detached(corrupt)
    kind = policy.output_kind
    measure = metric.prepare(
        MetricContext(clean=clean, corrupt=corrupt, value=clean.value, output_kind=kind, spec=policy.spec)
    )
    n_pairs = clean.scores.shape[0]
    pair = torch.arange(n_pairs, device=clean.scores.device)
    return BoundMetric(
        name=metric.name,
        unit=SCORE_UNITS.get(kind, "score") if metric.unit is None else metric.unit,
        clean=_checked(metric.name, measure(clean, pair), n_rows=n_pairs),
        corrupt=None if corrupt is None else _checked(metric.name, measure(corrupt, pair), n_rows=n_pairs),
        differentiable=metric.differentiable,
        measure=measure,
    )


def as_metric(metric: Metric | MetricFunction) -> Metric:
    """A metric, made of a plain function where it is one.

    Raises:
        MetricError: It is a string, a maker of metrics without its brackets, or no function at all.
    """
    if isinstance(metric, Metric):
        return metric
    label = metric if isinstance(metric, str) else getattr(metric, "__name__", None)
    made = str(getattr(metric, "__module__", "")) == "rlmech.metrics.score_metrics"  # a maker without its brackets
    if callable(metric) and not made:
        return Metric.of(metric)
    makers = [name for name in import_module("rlmech.metrics").__all__ if name != "Metric"]
    name = label if label in makers else (nearest(str(label), makers) or ["action_gap"])[0]
    raise MetricError(
        "A metric is made by calling its function." if made else "This is no metric.",
        given=f"the function {label} itself" if made else repr(metric)[:80],
        expected="a Metric, or a function fn(scores, context) -> [batch]",
        fix=f"metric=rlm.metrics.{name}({'0' if name == 'action_score' else ''})",
    )


def _detached(outputs: Outputs) -> Outputs:
    """Outputs as constants: what the unpatched runs fix must not carry gradients into what is measured."""
    value = None if outputs.value is None else outputs.value.detach()
    return Outputs(scores=outputs.scores.detach(), value=value)


def _checked(name: str, values: object, *, n_rows: int) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != (n_rows,):
        given = f"shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise MetricError(
            f"The metric {name!r} did not give one number per row.",
            given=given,
            expected=f"a tensor of shape [{n_rows}]",
            fix="reduce the action axis, and keep the batch axis",
        )
    if values.isnan().any():
        rows = values.isnan().nonzero()[:, 0]
        raise MetricError(
            f"The metric {name!r} is NaN.",
            given=f"NaN in {len(rows)} of {n_rows} rows, the first one {int(rows[0])}",
            expected="a number in each row",
            fix="look at the scores of that row: a NaN there comes from the patch or the observation",
        )
    return values
