"""The names of other libraries and what is written here: the table that answers them in error messages, as a page."""

from __future__ import annotations

from collections.abc import Mapping

from rlmech import habits

OWNERS: dict[str, Mapping[str, str]] = {
    "on a policy": habits.OF_POLICY,
    "on a cache": habits.OF_CACHE,
    "on a hook point": habits.OF_HOOK_POINT,
    "on the package": habits.OF_PACKAGE,
}
LIBRARIES: dict[str, frozenset[str]] = {
    "Stable-Baselines3 and Gymnasium": frozenset(
        {"learn", "load", "save", "policy", "PPO", "DQN", "evaluate_policy", "make"}
    ),
    "captum": frozenset({"IntegratedGradients", "DeepLift", "Saliency", "LayerConductance"}),
    "nnsight": frozenset({"trace", "LanguageModel"}),
}
"""Which names are whose; all others are TransformerLens's."""


def tables() -> str:
    """All names as Markdown tables, one for each library."""
    lines: list[str] = []
    for library in ("TransformerLens", *LIBRARIES):
        lines += [f"### {library}", "", "| you write | where | here |", "|---|---|---|"]
        for owner, answers in OWNERS.items():
            for name, answer in answers.items():
                if library == _library(name):
                    lines.append(f"| `{name}` | {owner} | {_code(answer)} |")
        if library == "TransformerLens":
            lines += [f"| `{start}…` | | {_code(answer)} |" for start, answer in habits.BEGINNINGS.items()]
        lines.append("")
    return "\n".join(lines)


def _library(name: str) -> str:
    return next((library for library, names in LIBRARIES.items() if name in names), "TransformerLens")


def _code(answer: str) -> str:
    return answer.replace("|", "\\|").replace("*.", "\\*.").replace("[", "\\[")
