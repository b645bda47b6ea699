"""Metrics: what a patch or an ablation is measured by, one number per row of a policy's outputs.

A metric is bound once to the unpatched runs, which fix its actions and reference distributions, and then reads any
number of patched rows:

    bound = bind(action_gap(), policy, clean=clean, corrupt=corrupt)
    bound.clean, bound.corrupt                          # [pair], in bound.unit
    bound(scores, pair=pair)                            # [batch], row i belongs to pair[i]

Any function `fn(scores, context) -> [batch]` is a metric too. Cost: a gather per row. Nothing here runs a policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlmech.errors import MetricError
from rlmech.spec import PolicySpec

SCORE_UNITS = {"q_values": "return", "logits": "nat", "mean_action": "action"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What a policy gave for a batch: its action scores, and its state value where it has that head."""

    scores: Float[Tensor, "batch action"]
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
        n_actions = self.clean.scores.shape[-1]
        if isinstance(name, str):
            return self.spec.index("action", name)
        if 0 <= name < n_actions:
            return name
        raise MetricError(
            f"There is no action {name}.",
            given=name,
            expected=f"a number from 0 to {n_actions - 1}, or one of {list(self.spec.actions)}",
            fix="name one of the policy's actions",
        )


MetricFunction = Callable[[Tensor, MetricContext], Tensor]
RowFunction = Callable[[Outputs, Tensor], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A named measure of a policy's outputs; `bind` gives it the unpatched runs.

    Attributes:
        name: What the results call it.
        unit: Its unit; None for the unit of the policy's scores (return for Q-values, nat for logits).
        prepare: Takes the context of all pairs, and gives the function of (outputs, pair of each row) that measures.
        differentiable: Whether a gradient of it says anything; attributions refuse a metric that has none.
    """

    name: str
    unit: str | None
    prepare: Callable[[MetricContext], RowFunction]
    differentiable: bool = True

    @classmethod
    def of(cls, function: MetricFunction, *, name: str | None = None, unit: str = "") -> Metric:
        """Make a metric of a plain function `fn(scores [batch action], context) -> [batch]`.

        Example:
            >>> import torch
            >>> from rlmech.interventions.metrics import Metric
            >>> spread = Metric.of(lambda scores, context: scores.amax(-1) - scores.amin(-1), name="spread", unit="Q")
            >>> spread.name, spread.unit
            ('spread', 'Q')
        """

        def prepare(context: MetricContext) -> RowFunction:
            def measure(outputs: Outputs, pair: Tensor) -> Any:  # what a user's function gives is checked by the caller
                corrupt = None if context.corrupt is None else context.corrupt.rows(pair)
                clean = context.clean.rows(pair)
                return function(outputs.scores, replace(context, clean=clean, corrupt=corrupt, value=outputs.value))

            return measure

        return cls(name=name or getattr(function, "__name__", "metric"), unit=unit, prepare=prepare)


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

    def __call__(
        self,
        scores: Float[Tensor, "batch action"],
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
        >>> from rlmech.interventions.metrics import Outputs, action_gap, bind
        >>> from rlmech.spec import PolicySpec
        >>> policy = SimpleNamespace(output_kind="q_values", spec=PolicySpec(actions=("SLOWER", "FASTER")))
        >>> clean = Outputs(scores=torch.tensor([[1.0, 3.0]]))
        >>> bind(action_gap("FASTER", "SLOWER"), policy, clean=clean).clean
        tensor([2.])
    """
    metric = metric if isinstance(metric, Metric) else Metric.of(metric)
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


def action_gap(better: int | str | None = None, worse: int | str | None = None) -> Metric:
    """Score of one action minus another's; the unit of the scores.

    Args:
        better: Name or number of the action whose score counts positively.
        worse: The other one's. Without both, each pair has its own, fixed from the unpatched runs: the clean run's
            choice against the corrupt run's, or against the clean run's runner-up where both choose the same or there
            is no corrupt run.

    Returns:
        A metric that is positive where `better` is preferred. A shift common to all actions leaves it as it is.

    Raises:
        MetricError: One action is given without the other, or twice the same.

    Source:
        Wang et al. 2022, *Interpretability in the Wild*, arXiv 2211.00593, section 3 (the logit difference).
    """
    if (better is None) != (worse is None) or (better is not None and better == worse):
        raise MetricError(
            "An action gap is between two actions.",
            given=f"better={better!r}, worse={worse!r}",
            expected="two actions, or none to have them fixed from the unpatched runs",
            fix="action_gap('FASTER', 'SLOWER'), or action_gap()",
        )

    def prepare(context: MetricContext) -> RowFunction:
        _refuse_continuous(context, "action_gap")
        if better is None or worse is None:
            pro, contra = _fixed_actions(context)
        else:
            like = context.clean.scores
            shape, device = like.shape[:1], like.device
            pro = torch.full(shape, context.action(better), device=device)
            contra = torch.full(shape, context.action(worse), device=device)

        def measure(outputs: Outputs, pair: Tensor) -> Tensor:
            return _pick(outputs.scores, pro[pair]) - _pick(outputs.scores, contra[pair])

        return measure

    name = "action_gap" if better is None else f"action_gap({better}, {worse})"
    return Metric(name=name, unit=None, prepare=prepare)


def action_score(action: int | str) -> Metric:
    """Score of one action, by name or number; the unit of the scores.

    Of Q-values most of the variance is the state's value, common to all actions: prefer `action_gap` for what decides.
    """

    def prepare(context: MetricContext) -> RowFunction:
        column = context.action(action)
        return lambda outputs, pair: outputs.scores[:, column]

    return Metric(name=f"action_score({action})", unit=None, prepare=prepare)


def action_flip() -> Metric:
    """1 where the greedy action is not the clean run's, else 0; its mean is the flip rate. It has no gradient.

    An offline flip rate is not a behavioural effect: `compare_rollouts` measures that.
    """

    def prepare(context: MetricContext) -> RowFunction:
        _refuse_continuous(context, "action_flip")
        chosen = context.clean.scores.argmax(-1)
        return lambda outputs, pair: (outputs.scores.argmax(-1) != chosen[pair]).to(outputs.scores.dtype)

    return Metric(name="action_flip", unit="fraction", prepare=prepare, differentiable=False)


def policy_kl(temperature: float | int | None = None) -> Metric:
    """KL divergence of the policy measured from the clean run's, KL(clean || measured), in nats; 0 for no change.

    Args:
        temperature: tau of softmax(scores / tau), above 0. Needed for Q-values, whose policy is greedy and has no
            distribution of its own; None for logits means 1, the policy's own distribution.

    Raises:
        MetricError: The temperature is not positive, is missing for Q-values, or the actions are continuous.
    """
    if temperature is not None and not temperature > 0:
        raise MetricError(
            "A temperature is positive.", given=temperature, expected="a number above 0", fix="policy_kl(temperature=1)"
        )

    def prepare(context: MetricContext) -> RowFunction:
        _refuse_continuous(context, "policy_kl")
        if temperature is None and context.output_kind == "q_values":
            raise MetricError(
                "A policy of Q-values has no distribution to take a KL divergence of.",
                given="policy_kl() without a temperature",
                expected="the temperature tau of softmax(Q / tau), in units of return",
                fix="policy_kl(temperature=1.0), and report it with the result",
            )
        tau = 1.0 if temperature is None else temperature
        reference = (context.clean.scores / tau).log_softmax(-1)

        def measure(outputs: Outputs, pair: Tensor) -> Tensor:
            log_p = reference[pair]
            return (log_p.exp() * (log_p - (outputs.scores / tau).log_softmax(-1))).sum(-1)

        return measure

    return Metric(
        name="policy_kl" if temperature is None else f"policy_kl(tau={temperature:g})", unit="nat", prepare=prepare
    )


def state_value() -> Metric:
    """The state's value: the value head's output, or max over actions of Q (the greedy policy's value) for Q-values.

    Raises:
        MetricError: When bound: the policy has neither a value head nor Q-values.
    """

    def prepare(context: MetricContext) -> RowFunction:
        greedy = context.clean.value is None
        if greedy and context.output_kind != "q_values":
            raise MetricError(
                "The policy gives no state value.",
                given=f"a policy of {context.output_kind} without hook_value",
                expected="a policy with a value head, or of Q-values",
                fix="wrap a module that returns (scores, value), or take another metric, e.g. action_gap()",
            )

        def measure(outputs: Outputs, pair: Tensor) -> Tensor:
            if greedy:
                return outputs.scores.amax(-1)
            if outputs.value is None:
                raise MetricError(
                    "The measured rows carry no state value.",
                    given="scores only",
                    expected="the value head's output beside the scores, as in the clean run",
                    fix="pass value=... with the scores",
                )
            return outputs.value

        return measure

    return Metric(name="state_value", unit="return", prepare=prepare)


def _detached(outputs: Outputs) -> Outputs:
    """Outputs as constants: what the unpatched runs fix must not carry gradients into what is measured."""
    value = None if outputs.value is None else outputs.value.detach()
    return Outputs(scores=outputs.scores.detach(), value=value)


def _pick(scores: Tensor, action: Tensor) -> Tensor:
    return scores.gather(-1, action[:, None])[:, 0]


def _fixed_actions(context: MetricContext) -> tuple[Tensor, Tensor]:
    clean = context.clean.scores
    if clean.shape[-1] < 2:
        raise MetricError(
            "The policy has one action, and a gap is between two.",
            given=f"scores {list(clean.shape)}",
            expected="at least 2 actions",
            fix="take action_score(0)",
        )
    best = clean.argsort(dim=-1, descending=True, stable=True)
    better, worse = best[:, 0], best[:, 1]
    if context.corrupt is not None:
        corrupt = context.corrupt.scores.argmax(-1)
        worse = torch.where(corrupt != better, corrupt, worse)
    return better, worse


def _refuse_continuous(context: MetricContext, name: str) -> None:
    if context.output_kind == "mean_action":
        raise MetricError(
            f"{name} compares the scores of discrete actions, and this policy's actions are continuous.",
            given="a policy of mean_action",
            expected="a policy of q_values or logits",
            fix="take action_score(i), the i-th component of the mean action",
        )


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
