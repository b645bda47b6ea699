"""Wrong calls in words: a keyword that is another library's, arguments by place that go by name, one left out.

A function that is called rightly pays for a `try`; its arguments are only looked at where the call fails.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from rlmech.errors import ArgumentError, EngineError, RlmechError, nearest

P = ParamSpec("P")
R = TypeVar("R")

ELSEWHERE = {
    "names_filter": "names",
    "corrupted": "corrupt",
    "corrupted_tokens": "corrupt",
    "clean_tokens": "clean",
    "patching_metric": "metric",
    "metric_fn": "metric",
    "inputs": "obs",
    "observations": "obs",
    "x": "obs",
    "baselines": "baseline",
    "target": "better",
    "hooks": "fwd_hooks",
    "steps": "n_steps",
    "n_random": "n_controls",
    "n_placebo": "n_controls",
    "direction": "vector",
    "n_episodes": "seeds",
    "n_eval_episodes": "seeds",
    "num_episodes": "seeds",
    "edit": "edits",
    "groups": "clusters",
}
"""Words for an argument in other libraries, or in older examples -> the word here."""

NOT_HERE = {
    "return_type": "leave it out: the scores are always returned",
    "remove_batch_dim": "leave it out, and take a row of what you read: cache[name][0]",
    "incl_bwd": "run_with_hooks(obs, bwd_hooks=[...]) reads gradients",
    "stop_at_layer": "leave it out; name what is kept: names=[...]",
    "prepend_bos": "leave it out: a policy reads observations, not text",
    "reset_hooks_end": "leave it out: hooks end with their call or their block",
    "clear_contexts": "leave it out: hooks end with their call or their block",
    "level": "leave it out: hooks end with their call or their block",
}


def explain_misuse(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function say in words what is wrong with the arguments of a call.

    Raises:
        ArgumentError: When called: an argument that it does not have, one too many by place, or one left out.

    Example:
        >>> from rlmech.arguments import explain_misuse
        >>> @explain_misuse
        ... def measure(policy, *, names=None):
        ...     return names
        >>> try:
        ...     measure("a policy", names_filter="*")
        ... except TypeError as error:
        ...     print(error.fix)
        write names=...
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            if isinstance(error, ArgumentError):
                raise
            signature = inspect.signature(function)
            try:
                signature.bind(*args, **kwargs)
            except TypeError:
                raise _misuse(function.__name__, signature, args, kwargs) from None
            raise
        except RuntimeError as error:
            if isinstance(error, RlmechError) or not _needs_gradients(error):
                raise
            raise EngineError(
                f"{function.__name__} takes gradients, which torch.inference_mode switches off.",
                given="a call inside torch.inference_mode(), or weights or observations that were made there",
                expected="tensors that autograd can follow",
                fix="call it outside, or under torch.no_grad(); copy.deepcopy(module) outside makes weights anew",
            ) from error

    return call


def _needs_gradients(error: RuntimeError) -> bool:
    """Whether it is about tensors that inference mode keeps from autograd."""
    return "nference tensor" in str(error) or (torch.is_inference_mode_enabled() and "require grad" in str(error))


def _misuse(
    name: str, signature: inspect.Signature, args: Sequence[object], kwargs: dict[str, object]
) -> ArgumentError:
    every = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    own = len(args) - (len(signature.parameters) - len(every))
    by_place = [p.name for p in every if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = [p.name for p in every if p.kind is p.KEYWORD_ONLY]
    unknown = [word for word in kwargs if word not in (*by_place, *by_name)]
    if unknown:
        return _unknown(name, unknown[0], [*by_place, *by_name])
    if own > len(by_place):
        free = [word for word in by_name if word not in kwargs]
        shown = [*by_place, *(f"{word}=..." for word in free[: own - len(by_place)])]
        return ArgumentError(
            f"{name} takes {', '.join(by_place) or 'nothing'} by place, and the rest by name.",
            given=f"{own} arguments by place",
            expected=f"{', '.join(by_place)}, then {', '.join(f'{word}=' for word in by_name[:6])}...",
            fix=f"{name}({', '.join(shown)})",
        )
    missing = [p.name for p in every if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    missing = [word for word in missing if word not in kwargs and word not in by_place[:own]]
    twice = [word for word in by_place[:own] if word in kwargs]
    return ArgumentError(
        f"{name} needs {', '.join(missing)}." if missing else f"{name} was given {', '.join(twice)} twice.",
        given=", ".join([*by_place[:own], *(f"{word}=" for word in kwargs)]) or "nothing",
        expected=", ".join([*by_place, *(f"{word}=" for word in missing if word in by_name)]),
        fix=f"{name}({', '.join([*by_place[:own], *(f'{word}=...' for word in missing)])})",
    )


def _unknown(name: str, word: str, known: Sequence[str]) -> ArgumentError:
    close = nearest(word, known, n=1)
    if ELSEWHERE.get(word) in known:
        fix = f"write {ELSEWHERE[word]}=..."
    elif word in NOT_HERE:
        fix = NOT_HERE[word]
    else:
        fix = f"did you mean {close[0]}=...?" if close else f"help({name}) says what each is"
    return ArgumentError(
        f"{name} has no argument {word!r}.",
        given=f"{word}=",
        expected=", ".join(known),
        fix=fix,
    )
