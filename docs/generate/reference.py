"""The reference: a page for each public module, written from its docstring and those of its names."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

from rlmech.public_names import MODULES, PUBLIC

TASKS: dict[str, tuple[str, ...]] = {
    "Open a policy": ("load", "HookedPolicy", "PolicySpec", "FeatureSpec", "save_policy"),
    "Read it": ("ActivationCache", "HookPoint", "Site"),
    "Change it": (
        "Edit",
        "zero_ablation",
        "mean_ablation",
        "resample_ablation",
        "patch",
        "subspace_patch",
        "steer",
        "erase",
    ),
    "Ask what matters": ("activation_patching", "ablation_sweep", "attribution_patching", "attribute_actions"),
    "Let it act": ("make_env", "record", "Recording", "compare_rollouts", "Condition", "Scene"),
    "Show it": ("report",),
    "Errors": ("RlmechError",),
}
"""The names of `import rlmech`, by what one wants to do."""

_OPTIONS = "    options:\n      heading: {heading}\n      toc_label: {label}\n"


def pages() -> dict[str, str]:
    """All pages of the reference: path -> Markdown."""
    written = {"reference/index.md": _index(), "reference/rlmech.md": _first_hour()}
    return written | {f"reference/{name}.md": _module(name) for name in MODULES}


def _index() -> str:
    lines = ["# Reference", "", "| module | what it is for |", "|---|---|"]
    lines.append("| [`rlm`](rlmech.md) | the names of a first hour: open, read, change, measure, drive |")
    for name in MODULES:
        lines.append(f"| [`rlm.{name}`]({name}.md) | {_first_line(importlib.import_module(f'rlmech.{name}'))} |")
    lines += [
        "",
        "Every function says the shapes and units of what it takes and returns, what it raises, where it is exact, and "
        "has an example; the examples are run by the tests. All errors are listed in the "
        "[error index](../errors/index.md), axes and words in the [glossary](../glossary.md).",
    ]
    return "\n".join(lines) + "\n"


def _first_hour() -> str:
    rlmech = importlib.import_module("rlmech")
    lines = ["# rlm: the names of a first hour", "", "```python\nimport rlmech as rlm\n```", ""]
    for task, names in TASKS.items():
        lines += [f"**{task}:** " + ", ".join(f"[`{name}`][{_address(getattr(rlmech, name))}]" for name in names), ""]
    home = {name: module for module in MODULES for name in importlib.import_module(f"rlmech.{module}").__all__}
    for name in (name for names in TASKS.values() for name in names):
        if name not in home:
            lines.append(_entry(f"rlm.{name}", getattr(rlmech, name)))
    return "\n".join(lines)


def _module(module: str) -> str:
    package = importlib.import_module(f"rlmech.{module}")
    heading, _, rest = inspect.cleandoc(package.__doc__ or "").partition("\n")
    lines = [f"# rlm.{module}", "", heading, "", *_linked(rest, module, package), ""]
    for name in package.__all__:
        thing = getattr(package, name)
        if inspect.ismodule(thing):
            lines += [f"## rlm.{module}.{name}", "", *inspect.cleandoc(thing.__doc__ or "").split("\n"), ""]
            lines += [
                _entry(f"rlm.{module}.{name}.{inner}", function, level=3)
                for inner, function in vars(thing).items()
                if inspect.isfunction(function) and not inner.startswith("_") and function.__module__ == thing.__name__
            ]
        elif inspect.isclass(thing) or inspect.isfunction(thing):
            lines.append(_entry(f"rlm.{module}.{name}", thing))
        else:
            lines += [f"## rlm.{module}.{name}", "", f"`{str(thing).replace('typing.', '')}`", ""]
    return "\n".join(lines)


def _linked(text: str, module: str, package: ModuleType) -> list[str]:
    """A module's list of tasks, with its names as links."""
    for name in sorted(package.__all__, key=len, reverse=True):
        thing = getattr(package, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            text = text.replace(f" `{name}`", f" [`{name}`][{_address(thing)}]")
    return text.strip().split("\n")


def _entry(address: str, thing: Any, *, level: int = 2) -> str:
    options = _OPTIONS.format(heading=address, label=address.rpartition(".")[2]) + f"      heading_level: {level}\n"
    return f"::: {_address(thing)}\n{options}"


def _address(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _first_line(thing: Any) -> str:
    return inspect.cleandoc(thing.__doc__ or "").partition("\n")[0]


def uncovered() -> list[str]:
    """Public names that no task of `TASKS` has."""
    return sorted(set(PUBLIC) - {name for names in TASKS.values() for name in names})
