"""Modules import downwards: no circle, the imports that only type checkers and functions make included."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Set
from pathlib import Path

import rlmech

ROOT = Path(rlmech.__file__).parent
CONSTRUCTORS = {("rlmech.core.policy", "rlmech.adapters.sb3"), ("rlmech.core.policy", "rlmech.adapters.rl_agents")}
"""`HookedPolicy.from_sb3` and `.from_rl_agents` import their adapter when they are called."""


def modules() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str, known: Set[str]) -> set[str]:
    """The modules that a source imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    deeper = {name for name in names if name in known}
    return {name for name in deeper if not any(other.startswith(f"{name}.") for other in deeper)}


def circle(imports: Mapping[str, Set[str]]) -> list[str]:
    """Modules that import each other in a ring, the first one that is found; empty where there are none."""
    finished: set[str] = set()
    for start in sorted(imports):
        way: list[str] = []
        stack: list[tuple[str, bool]] = [(start, False)]
        while stack:
            name, left = stack.pop()
            if left:
                finished.add(way.pop())
            elif name in way:
                return [*way[way.index(name) :], name]
            elif name not in finished:
                way.append(name)
                stack.append((name, True))
                stack.extend((other, False) for other in sorted(imports[name]))
    return []


def test_no_module_imports_itself_through_others():
    known = modules()
    imports = {
        name: {other for other in imported(path.read_text(), known.keys()) if (name, other) not in CONSTRUCTORS}
        for name, path in known.items()
    }
    assert circle({name: others - {name} for name, others in imports.items()}) == []


def test_a_circle_through_an_import_for_types_is_found():
    sources = {
        "a": "import b",
        "b": "def f():\n    from c import x",
        "c": "if TYPE_CHECKING:\n    from a import y",
        "d": "import a",
    }
    imports = {name: imported(source, sources.keys()) for name, source in sources.items()}
    assert circle(imports) == ["a", "b", "c", "a"]
    assert circle({**imports, "c": set()}) == []
