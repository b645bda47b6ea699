"""The metrics: what a patch or an ablation is measured by.

Actions and reference distributions come from the unpatched runs and stay as they are. What a network masks (-inf, -1e8)
is no score: gaps and divergences are between actions that are open. Cost: a gather per row. `measure` says what a
metric is, and how to write one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.core.masked import is_masked, open_actions
from rlmech.errors import MetricError
from rlmech.metrics.measure import (
    LinearMeasure,
    Metric,
    MetricContext,
    Outputs,
    RowFunction,
)
from rlmech.metrics.one_choice import of_choice


@explain_misuse
def action_gap(
    better: int | str | None = None, worse: int | str | None = None, *, choice: int | str | None = None
) -> Metric:
    """Score of one action minus another's; the unit of the scores.

    Args:
        better: Name or number of the action whose score counts positively.
        worse: The other one's. Without both, each pair has its own, fixed from the unpatched runs: the clean run's
            choice against the corrupt run's, or against the clean run's runner-up where both choose the same or there
            is no corrupt run; all of them among the actions that both runs leave open.
        choice: Of a policy that makes several choices at once, the one that is measured, by name or number.

    Returns:
        A metric that is positive where `better` is preferred. A shift common to all actions leaves it as it is. It is 0
        where a single action is open, or both actions are masked.

    Raises:
        MetricError: One action is given without the other, or twice the same. When it measures: one of the two actions
            is masked, and the other is not.

    Source:
        Wang et al. 2022, *Interpretability in the Wild*, arXiv 2211.00593, section 3 (the logit difference).

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> result = rlm.ablation_sweep(policy, torch.rand(8, 4), metric=rlm.metrics.action_gap(1, 0))
        >>> result.attrs["metric"], result["effect"].attrs["units"]
        ('action_gap(1, 0)', 'return')
    """
    same = MetricError(
        "An action gap is between two actions.",
        given=f"better={better!r}, worse={worse!r}",
        expected="two actions, or none to have them fixed from the unpatched runs",
        fix="action_gap('FASTER', 'SLOWER'), or action_gap()",
    )
    if (better is None) != (worse is None) or (better is not None and better == worse):
        raise same

    name = "action_gap" if better is None else f"action_gap({better}, {worse})"

    def prepare(context: MetricContext) -> RowFunction:
        _refuse_continuous(context, "action_gap")
        if better is None or worse is None:
            pro, contra = _fixed_actions(context)
        else:
            like = context.clean.scores
            shape, device = like.shape[:1], like.device
            first, second = context.action(better), context.action(worse)
            if first == second:  # one by its name, the other by its number
                raise same
            pro, contra = torch.full(shape, first, device=device), torch.full(shape, second, device=device)

        def measure(outputs: Outputs, pair: Tensor) -> Tensor:
            first, second = _pick(outputs.scores, pro[pair]), _pick(outputs.scores, contra[pair])
            hidden = is_masked(first)
            _refuse_masked(hidden != is_masked(second), name)
            return (first - second).masked_fill(hidden | (pro[pair] == contra[pair]), 0)

        return _linear(measure, context, pro=pro, contra=contra, alike=better is not None)

    return of_choice(Metric(name=name, unit=None, prepare=prepare), choice)


@explain_misuse
def action_score(action: int | str, *, choice: int | str | None = None) -> Metric:
    """Score of one action, by name or number; the unit of the scores.

    Of Q-values most of the variance is the state's value, common to all actions: prefer `action_gap` for what decides.

    Args:
        action: The action.
        choice: Of a policy that makes several choices at once, the one that it belongs to, by name or number.

    Raises:
        MetricError: When it measures: the action is masked.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> rlm.ablation_sweep(policy, torch.rand(8, 4), metric=rlm.metrics.action_score(0)).attrs["metric"]
        'action_score(0)'
    """
    name = f"action_score({action})"

    def prepare(context: MetricContext) -> RowFunction:
        column = context.action(action)

        def measure(outputs: Outputs, pair: Tensor) -> Tensor:
            score = outputs.scores[:, column]
            if context.output_kind != "mean_action":
                _refuse_masked(is_masked(score), name)
            return score

        return measure

    return of_choice(Metric(name=name, unit=None, prepare=prepare), choice)


@explain_misuse
def action_flip(*, choice: int | str | None = None) -> Metric:
    """1 where the greedy action is not the clean run's, else 0; its mean is the flip rate. It has no gradient.

    Of several choices at once, 1 where any of them is another; `choice` names one to look at alone.

    An offline flip rate is not a behavioural effect: `compare_rollouts` measures that.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> result = rlm.ablation_sweep(policy, torch.rand(8, 4), metric=rlm.metrics.action_flip())
        >>> result["effect"].attrs["units"]
        'fraction'
    """

    def prepare(context: MetricContext) -> RowFunction:
        _refuse_continuous(context, "action_flip")
        chosen = context.clean.scores.argmax(-1)

        def measure(outputs: Outputs, pair: Tensor) -> Tensor:
            flipped = _any(outputs.scores.argmax(-1) != chosen[pair]).to(outputs.scores.dtype)
            lost = _any(outputs.scores.isnan())
            return flipped.masked_fill(lost, torch.nan)  # NaN would pass for the greatest

        return measure

    metric = Metric(name="action_flip", unit="fraction", prepare=prepare, differentiable=False)
    return metric if choice is None else of_choice(metric, choice)


@explain_misuse
def policy_kl(temperature: float | int | None = None, *, choice: int | str | None = None) -> Metric:
    """KL divergence of the policy measured from the clean run's, KL(clean || measured), in nats; 0 for no change.

    Args:
        temperature: tau of softmax(scores / tau), above 0. Needed for Q-values, whose policy is greedy and has no
            distribution of its own; None for logits means 1, the policy's own distribution.
        choice: Of a policy that makes several choices at once, the one that is measured, by name or number; None for
            all, whose divergences add up, since they are drawn independently.

    Returns:
        A metric over the actions that both runs leave open, each distribution normalised over them.

    Raises:
        MetricError: The temperature is not positive, is missing for Q-values, or the actions are continuous.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> result = rlm.ablation_sweep(policy, torch.rand(8, 4), metric=rlm.metrics.policy_kl(temperature=1.0))
        >>> result.attrs["metric"], result["effect"].attrs["units"]
        ('policy_kl(tau=1)', 'nat')
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
        clean = context.clean.scores / tau
        clean_open = open_actions(context.clean.scores)

        def measure(outputs: Outputs, pair: Tensor) -> Tensor:
            hidden = ~(clean_open[pair] & open_actions(outputs.scores))
            log_p, log_q = _log_policy(clean[pair], hidden), _log_policy(outputs.scores / tau, hidden)
            terms = log_p.exp() * (log_p - log_q).masked_fill(hidden, 0)  # not 0 * (-inf - -inf)
            return terms.flatten(1).sum(-1)

        return measure

    name = "policy_kl" if temperature is None else f"policy_kl(tau={temperature:g})"
    metric = Metric(name=name, unit="nat", prepare=prepare)
    return metric if choice is None else of_choice(metric, choice)


@explain_misuse
def action_shift() -> Metric:
    """How far a continuous action has moved, in the action's own unit.

        (a - a_corrupt) . (a_clean - a_corrupt) / |a_clean - a_corrupt|    between two runs
        |a - a_clean|                                                      where there is one run only (ablations)

    Returns:
        Between two runs a metric that is 0 for the corrupt run and the actions' distance for the clean one; beyond
        either where an action overshoots. Where both runs act alike there is no direction, and it is 0 for every
        action. With one run it is the distance from that run's action, 0 for the run itself and never negative: its
        mean says that actions change, not to which side (`action_score(i)` does).

    Raises:
        MetricError: When bound: the actions are discrete.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4), output_kind="mean_action")
        >>> rlm.ablation_sweep(policy, torch.rand(8, 4), metric=rlm.metrics.action_shift())["effect"].attrs["units"]
        'action'
    """

    def prepare(context: MetricContext) -> RowFunction:
        if context.output_kind != "mean_action":
            raise MetricError(
                "action_shift measures continuous actions, and this policy's are discrete.",
                given=f"a policy of {context.output_kind}",
                expected="a policy of mean_action",
                fix="take action_gap()",
            )
        if context.corrupt is None:
            own = context.clean.scores
            return lambda outputs, pair: (outputs.scores - own[pair]).norm(dim=-1)
        origin = context.corrupt.scores
        way = context.clean.scores - origin
        length = way.norm(dim=-1, keepdim=True)
        direction = way / torch.where(length > 0, length, 1)  # 0 where both runs act alike
        return lambda outputs, pair: ((outputs.scores - origin[pair]) * direction[pair]).sum(-1)

    return Metric(name="action_shift", unit=None, prepare=prepare)


@explain_misuse
def state_value() -> Metric:
    """The state's value: the value head's output, or max over actions of Q (the greedy policy's value) for Q-values.

    Raises:
        MetricError: When bound: the policy has neither a value head nor Q-values.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> rlm.ablation_sweep(policy, torch.rand(8, 4), metric=rlm.metrics.state_value())["effect"].attrs["units"]
        'return'
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

    return Metric(name="state_value", unit="return", prepare=prepare, reads="both")


def default_metric(output_kind: str) -> Metric:
    """What is measured where nothing is said: the action gap, or for continuous actions how far they move."""
    return action_shift() if output_kind == "mean_action" else action_gap()


def _any(flags: Tensor) -> Tensor:
    """Whether anything holds in a row."""
    return flags if flags.ndim == 1 else flags.flatten(1).any(-1)


def _linear(
    measure: RowFunction, context: MetricContext, *, pro: Tensor, contra: Tensor, alike: bool
) -> RowFunction | LinearMeasure:
    """The gap between two actions as a weighted sum of the scores; the measure alone where scores are masked."""
    runs = [run.scores for run in (context.clean, context.corrupt) if run is not None]
    if any(bool(is_masked(scores).any()) for scores in runs):
        return measure
    rows = slice(0, 1) if alike else slice(None)
    weights = torch.zeros_like(runs[0][rows])
    weights.scatter_(-1, pro[rows, None], 1)
    weights.scatter_add_(-1, contra[rows, None], -torch.ones_like(weights[:, :1]))  # 0 where both are the same
    return LinearMeasure(weights=weights, measure=measure)


def _pick(scores: Tensor, action: Tensor) -> Tensor:
    return scores.gather(-1, action[:, None])[:, 0]


def _log_policy(scores: Tensor, hidden: Tensor) -> Tensor:
    """The logarithm of the policy over the actions that are not hidden; uniform where every score is -inf."""
    nothing_open = scores.isneginf().all(-1, keepdim=True)
    return scores.masked_fill(nothing_open, 0).masked_fill(hidden, -torch.inf).log_softmax(-1)


def _refuse_masked(hidden: Tensor, name: str) -> None:
    if hidden.any():
        rows = hidden.nonzero()[:, 0]
        raise MetricError(
            f"The metric {name!r} is of an action that is masked, whose score says nothing.",
            given=f"a score of -1e7 or less in {len(rows)} of {len(hidden)} rows, the first one {int(rows[0])}",
            expected="actions that are open in every row",
            fix="measure pairs in which the action is open, or take action_gap(), which fixes open actions itself, "
            "policy_kl() or action_flip()",
        )


def _fixed_actions(context: MetricContext) -> tuple[Tensor, Tensor]:
    clean = context.clean.scores
    if clean.shape[-1] < 2:
        raise MetricError(
            "The policy has one action, and a gap is between two.",
            given=f"scores {list(clean.shape)}",
            expected="at least 2 actions",
            fix="take action_score(0)",
        )
    shown = open_actions(clean)
    if context.corrupt is not None:
        shown = shown & open_actions(context.corrupt.scores)
    best = clean.masked_fill(~shown, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    better, worse = best[:, 0], best[:, 1]
    if context.corrupt is not None:
        corrupt = context.corrupt.scores.masked_fill(~shown, -torch.inf).argmax(-1)
        worse = torch.where(corrupt != better, corrupt, worse)
    return better, torch.where(shown.sum(-1) > 1, worse, better)  # a single open action has no gap


def _refuse_continuous(context: MetricContext, name: str) -> None:
    if context.output_kind == "mean_action":
        raise MetricError(
            f"{name} compares the scores of discrete actions, and this policy's actions are continuous.",
            given="a policy of mean_action",
            expected="a policy of q_values or logits",
            fix="take action_shift(), or action_score(i), the i-th component of the mean action",
        )
