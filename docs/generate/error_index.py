"""The error index: what each message means and how to mend it, read from the places that raise it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlmech import errors

PACKAGE = Path(errors.__file__).parent
CLASSES = {
    name: thing
    for name, thing in vars(errors).items()
    if isinstance(thing, type) and issubclass(thing, errors.RlmechError) and thing is not errors.RlmechError
}


@dataclass(frozen=True, slots=True)
class Message:
    """One message of an error: what it says, with … and <name> for what is filled in."""

    error: str
    problem: str
    given: str
    expected: str
    fix: str
    module: str


def messages() -> list[Message]:
    """Every message that the package can raise, sorted by error and text."""
    found: dict[tuple[str, str, str], Message] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for message in _of_call(node, module):
                found.setdefault((message.error, message.problem, message.fix), message)
    return [found[key] for key in sorted(found)]


def pages() -> dict[str, str]:
    """The index and a page for each class of errors: path -> Markdown."""
    of_class: dict[str, list[Message]] = {name: [] for name in CLASSES}
    for message in messages():
        of_class[message.error].append(message)
    return {"errors/index.md": _index(of_class)} | {
        f"errors/{name}.md": _page(name, found) for name, found in of_class.items() if found
    }


def _index(of_class: dict[str, list[Message]]) -> str:
    lines = [
        "# Error index",
        "",
        "Every error of rlmech says what happened, what was given, what was expected, and how to mend it. Each is an "
        "`RlmechError` and also the builtin error that fits, so that `except ValueError` works as it always does. "
        "Search for the first words of a message, or choose its class; \\<name\\> and … stand for what is filled in.",
        "",
        "| error | also a | what it means | messages |",
        "|---|---|---|---|",
    ]
    for name, found in of_class.items():
        if found:
            builtin = next(base.__name__ for base in CLASSES[name].__mro__ if base.__module__ == "builtins")
            meaning = (CLASSES[name].__doc__ or "").strip()
            lines.append(f"| [`{name}`]({name}.md) | `{builtin}` | {meaning} | {len(found)} |")
    return "\n".join(lines) + "\n"


def _page(name: str, found: list[Message]) -> str:
    lines = [f"# {name}", "", (CLASSES[name].__doc__ or "").strip(), ""]
    for message in found:
        lines += [f"## {_plain(message.problem)}", ""]
        lines += [
            f"- **What was given:** {_plain(message.given)}",
            f"- **What is expected:** {_plain(message.expected)}",
        ]
        lines += [f"- **How to mend it:** {_plain(message.fix)}", f"- Raised in `{message.module}`.", ""]
    return "\n".join(lines)


def _of_call(node: ast.AST, module: str) -> Iterator[Message]:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CLASSES and node.args):
        return
    parts = {word.arg: " or: ".join(_texts(word.value)) for word in node.keywords if word.arg}
    for problem in _texts(node.args[0]):
        if re.search(
            r"[^\W\d_]{2}", re.sub("<.*?>", "", problem)
        ):  # one that passes on another's words has none of its own
            yield Message(
                node.func.id, problem, parts.get("given", ""), parts.get("expected", ""), parts.get("fix", ""), module
            )


def _texts(node: ast.expr) -> list[str]:
    """What an expression of text can say: one text for each branch, … for what only the run knows."""
    match node:
        case ast.Constant(value=value):
            return [str(value)]
        case ast.JoinedStr(values=values):
            return _joined(values)
        case ast.FormattedValue(value=ast.IfExp() | ast.JoinedStr() as value):
            return _texts(value)
        case ast.IfExp(body=body, orelse=other):
            return [*_texts(body), *_texts(other)]
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return _joined([left, right])
        case ast.FormattedValue(value=value):
            return [f"<{_named(value)}>"] if _named(value) else ["…"]
        case ast.Name() | ast.Attribute():
            return [f"<{_named(node)}>"]
        case ast.Call(func=ast.Name(id="repr" | "str"), args=[ast.Name() | ast.Attribute() as value]):
            return [f"<{_named(value)}>"]
        case _:
            return ["…"]


def _named(node: ast.expr) -> str:
    """What a value is called in the code; empty where it is computed."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_")
        case _:
            return ""


def _joined(parts: list[ast.expr]) -> list[str]:
    texts = [""]
    for part in parts:
        texts = [before + after for before in texts for after in _texts(part)]
    return list(dict.fromkeys(re.sub(r"…(\s*…)+", "…", text) for text in texts))[:4]


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(text.split())) or "…"
