"""Policies trained for this package, shipped as safetensors with a card each; `rlm.load("zoo:<name>")` opens one.

A policy's folder holds `policy.safetensors`, `card.json` and, where it is shipped, `ladder/step_N.safetensors`:
checkpoints along its training, opened as `zoo:<name>@step_N`.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rlmech.arguments import explain_misuse
from rlmech.errors import CheckpointError, nearest
from rlmech.zoo.cards import POLICY, Card, Evaluation

__all__ = ["Card", "Evaluation", "card", "ladder", "list", "names", "path"]

_FOLDER = Path(__file__).parent


@explain_misuse
def names() -> tuple[str, ...]:
    """Names of the shipped policies.

    Example:
        >>> import rlmech as rlm
        >>> rlm.zoo.names()
        ('cue-recall-lstm', 'highway-dqn-mlp', 'intersection-ego-attention', 'minigrid-doorkey-mlp')
    """
    return tuple(sorted(p.parent.name.replace("_", "-") for p in _FOLDER.glob("*/policy.safetensors")))


@explain_misuse
def list() -> pd.DataFrame:
    """Show the shipped policies: a row each, from their cards.

    Returns:
        By name: environment, algorithm, training steps and number of weights; of the evaluation there, on unseen seeds,
        mean return with its 95 % interval, crash rate where there is a road, arrival rate where there is a goal,
        success rate in a grid, the best constant action and its return.

    Example:
        >>> import rlmech as rlm
        >>> rlm.zoo.list().index.to_list()
        ['cue-recall-lstm', 'highway-dqn-mlp', 'intersection-ego-attention', 'minigrid-doorkey-mlp']
    """
    rows = {}
    for name in names():
        one = card(name)
        home = one.evaluations[0]
        policy, constant = home.drivers[POLICY], home.drivers[home.best_constant]
        rows[name] = {
            "environment": home.env_id,
            "algorithm": one.config["algorithm"],
            "steps": one.step,
            "weights": one.n_parameters,
            "return": policy["return"]["mean"],
            "return_low": policy["return"]["low"],
            "return_high": policy["return"]["high"],
            "crashed": policy.get("crashed", {}).get("mean", float("nan")),
            "arrived": policy.get("arrived", {}).get("mean", float("nan")),
            "success": policy.get("success", {}).get("mean", float("nan")),
            "best_constant": home.best_constant,
            "its_return": constant["return"]["mean"],
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")


@explain_misuse
def card(name: str) -> Card:
    """The card of a shipped policy.

    Raises:
        CheckpointError: There is no such policy.

    Example:
        >>> import rlmech as rlm
        >>> rlm.zoo.card("intersection-ego-attention").evaluations[0].env_id
        'intersection-v2'
    """
    return Card.load(_folder(name) / "card.json")


@explain_misuse
def ladder(name: str) -> tuple[str, ...]:
    """Names of a policy's checkpoints along training, earliest first, each to be opened as `zoo:<name>@step_N`.

    Raises:
        CheckpointError: There is no such policy.

    Example:
        >>> import rlmech as rlm
        >>> rlm.zoo.ladder("intersection-ego-attention")[0]
        'intersection-ego-attention@step_0000000'
    """
    steps = sorted((_folder(name) / "ladder").glob("step_*.safetensors"))
    return tuple(f"{name}@{step.stem}" for step in steps)


@explain_misuse
def path(name: str) -> Path:
    """File of a shipped policy's weights.

    Args:
        name: A policy's name, or one of its checkpoints: `intersection-ego-attention@step_0040000`.

    Raises:
        CheckpointError: There is no such policy or checkpoint.

    Example:
        >>> import rlmech as rlm
        >>> rlm.zoo.path("intersection-ego-attention").name
        'policy.safetensors'
    """
    policy, _, step = name.partition("@")
    if not step:
        return _folder(policy) / "policy.safetensors"
    found = _folder(policy) / "ladder" / f"{step}.safetensors"
    if name not in ladder(policy):
        raise _unknown(name, ladder(policy))
    return found


def _folder(name: str) -> Path:
    if name not in names():
        raise _unknown(name, names())
    return _FOLDER / name.replace("-", "_")


def _unknown(name: str, known: tuple[str, ...]) -> CheckpointError:
    close = nearest(name, known)
    return CheckpointError(
        f"The zoo has no policy {name!r}.",
        given=repr(name),
        expected=f"one of {', '.join(known)}",
        fix=f"did you mean {close[0]!r}?" if close else "rlm.zoo.list() shows them",
    )
