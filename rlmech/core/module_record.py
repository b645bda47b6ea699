"""What a module holds that its exported graph does not read anew: attributes, plain tensors, hooks, submodules.

The graph reads parameters and buffers as they are now. Everything else was read once, when the module was exported;
`ModuleRecord` remembers it, tells in about a microsecond whether it is as it was, and else names what changed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlmech.errors import EngineError
from rlmech.untyped import JsonObject

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
SIZES = frozenset(
    ("in_features", "out_features", "in_channels", "out_channels", "num_features", "inplace", "num_embeddings")
)
"""Attributes of torch's own layers that their `forward` does not read, or that do not change a value."""
SMALL = 64
"""Items of a container up to which its content is remembered, not only which container it is."""
FOREIGN = ("torch", "numpy", "gymnasium", "gym", "builtins", "stable_baselines3")
"""Packages whose objects are watched as wholes: an optimiser's or a space's inside is not what is computed with."""
MISSING = object()
_READY = frozenset(vars(nn.Module()))
"""What every module has of its own."""

Contents = JsonObject


class PassHook:
    """A hook that a pass of ours puts on a module for as long as it lasts: other threads' records do not count it."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *args: object) -> None:
        """As torch calls a hook."""
        self._function(*args)


class ModuleRecord:
    """A module's attributes, plain tensors, hooks and submodules as they are when this is made.

    Args:
        module: The network.
        ignored: Attributes that its own `forward` writes, as `changes` names them; they say nothing.
    """

    def __init__(self, module: nn.Module, *, ignored: frozenset[str] = frozenset()) -> None:
        self._module, self._ignored = module, ignored
        self._contents = {path: _contents(owner) for path, owner in _owners(module)}
        registered = {id(value) for tensors in (module.parameters(), module.buffers()) for value in tensors}
        self._tensors = {
            name: value
            for path, contents in self._contents.items()
            for name, value in _tensors(path, contents)
            if name not in ignored and id(value) not in registered
        }
        self._versions = [value._version for value in self._tensors.values()]  # torch counts changes in place
        self._hooks = _hooks(module)
        self._submodules = _submodules(module)
        self._weights = _weights(module)
        self._hook_dicts = [
            hooks for child in module.modules() for name in HOOKS if (hooks := _dict(child, name)) is not None
        ]
        self._arrays = [
            (vars(owner)[name], value.tobytes())
            for path, owner in _owners(module)
            for name, value in self._contents[path].items()
            if isinstance(value, np.ndarray) and value.size <= SMALL**2 and _named(path, name) not in ignored
        ]
        self._watched: list[tuple[JsonObject, int | None, Callable[[Any], Any], Any]] = []
        for path, owner in _owners(module):
            self._watch(path, owner)
        for child in module.modules():
            children = _dict(child, "_modules")
            if children:
                names = tuple(children)
                self._watched.append((children, None, operator.itemgetter(*names), _gathered(children, names)))
            weights = _dict(child, "_parameters")
            if weights:  # pruning and parametrisations put others in their place
                self._watched.append((weights, len(weights), _nothing, ()))
        self.is_current: Callable[[], bool] = self._checker()

    def _watch(self, path: str, owner: object) -> None:
        contents = {
            name: vars(owner)[name] if isinstance(value, np.ndarray) else value  # arrays are compared by their bytes
            for name, value in self._contents[path].items()
            if _named(path, name) not in self._ignored
        }
        names = tuple(contents)
        own = not (isinstance(owner, nn.Module) and type(owner).__module__.startswith("torch.nn."))
        if own or names:
            read = operator.itemgetter(*names) if names else _nothing
            self._watched.append((vars(owner), len(vars(owner)) if own else None, read, _gathered(contents, names)))

    def _checker(self) -> Callable[[], bool]:
        """Whether nothing has changed, as far as it can be told without looking into large values."""
        watched, hooks, arrays = self._watched, self._hook_dicts, self._arrays
        tensors, versions = list(self._tensors.values()), self._versions
        owned = [attributes for attributes, size, _, _ in watched if size is not None]
        sizes = [size for _, size, _, _ in watched if size is not None]
        reads = [(attributes, read, values) for attributes, _, read, values in watched if values != ()]
        was_hooked = bool(self._hooks)
        rare = bool(tensors or arrays or was_hooked)

        def is_current() -> bool:
            try:
                for attributes, read, values in reads:
                    if read(attributes) != values:
                        return False
            except (KeyError, RuntimeError, ValueError, TypeError):  # taken away, or a tensor beside another tensor
                return False
            if owned and list(map(len, owned)) != sizes:
                return False
            if not rare:
                return not any(hooks) or not _hooks(self._module)
            return (
                [value._version for value in tensors] == versions
                and all(array.tobytes() == content for array, content in arrays)
                and ((not was_hooked and not any(hooks)) or _hooks(self._module) == self._hooks)
            )

        return is_current

    def renewed(self) -> ModuleRecord:
        """A record of the module as it is now."""
        return ModuleRecord(self._module, ignored=self._ignored)

    def check_submodules(self) -> None:
        """Refuse a module of which a part or a weight that was exported is another one now, or none.

        Raises:
            EngineError: That part or weight, named.
        """
        gone = sorted(self._weights - _weights(self._module))
        if gone:
            raise EngineError(
                f"The network was changed since it was wrapped: it has no {gone[0]!r} any more.",
                given=f"weights without {', '.join(gone[:3])}, as pruning and parametrisations leave them",
                expected="the parameters and buffers that were traced",
                fix="wrap the network again: HookedPolicy(module, example_obs)",
            )
        present = _submodules(self._module)
        for path, child in self._submodules.items():
            now = present.get(path)
            if now is not child:
                raise EngineError(
                    f"The network was changed since it was wrapped: {path!r} is another module now.",
                    given=f"a {type(now).__name__}" if now is not None else "nothing",
                    expected=f"the {type(child).__name__} that was traced",
                    fix="wrap the network again: HookedPolicy(module, example_obs)",
                )

    def error(self, found: str) -> EngineError:
        """The error for a module that gives other scores than its graph: what has changed, by name."""
        changes = self.changes()
        named = "; ".join(f"{name}: {what}" for name, what in list(changes.items())[:3])
        return EngineError(
            f"The network was changed since it was wrapped: {', '.join(list(changes)[:3])}."
            if changes
            else "The network computes something else than when it was wrapped; none of its attributes changed.",
            given=f"{named or 'a global, a class attribute or a closure that it reads'}; {found}",
            expected="the scores of the module as it was traced; only parameters and buffers are read anew",
            fix="wrap the network again: HookedPolicy(module, example_obs); or keep the value in a buffer",
        )

    def changes(self) -> dict[str, str]:
        """What has changed, by name: `old -> new`."""
        changed: dict[str, str] = {}
        for path, owner in _owners(self._module):
            before, now = self._contents.get(path, {}), _contents(owner)
            for name in dict.fromkeys((*before, *now)):
                old, new = before.get(name, MISSING), now.get(name, MISSING)
                if not _same(old, new):
                    changed[_named(path, name)] = f"{_text(old)} -> {_text(new)}"
        for (name, value), version in zip(self._tensors.items(), self._versions, strict=True):
            if value._version != version:
                changed.setdefault(name, "a tensor that was changed in place")
        now, before = _hooks(self._module), self._hooks
        for path in dict.fromkeys((*before, *now)):
            if before.get(path) != now.get(path):
                more = len(now.get(path, ())) - len(before.get(path, ()))
                what = "added" if more > 0 else "taken away" if more < 0 else "exchanged"
                changed[f"the forward hooks of {path or 'the root'}"] = f"one was {what}"
        before, now = self._submodules, _submodules(self._module)
        for path in dict.fromkeys((*before, *now)):
            old, new = before.get(path, MISSING), now.get(path, MISSING)
            if old is not new:
                changed[path] = f"{_text(old)} -> {'another ' if type(old) is type(new) else ''}{_text(new)}"
        return {name: what for name, what in changed.items() if name not in self._ignored}


def nan_weights(module: nn.Module) -> str | None:
    """The first parameter or buffer that holds NaN, named, or None."""
    for kind, tensors in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
        for name, value in tensors:
            if value.is_floating_point() and bool(torch.isnan(value).any()):
                return f"{kind} {name}"
    return None


def held_by_modules(module: nn.Module) -> Iterator[tuple[str, object]]:
    """What a module and its parts hold besides parameters, buffers and submodules, by name."""
    for path, owner in _owners(module):
        for name, value in _contents(owner).items():
            yield _named(path, name), value


def _owners(module: nn.Module) -> Iterator[tuple[str, object]]:
    """Whatever holds attributes: the modules, and plain objects that they hold, such as a configuration."""
    for path, child in module.named_modules():
        yield path, child
        for name, value in vars(child).items():
            plain = hasattr(value, "__dict__") and not callable(value) and name not in _READY
            if plain and type(value).__module__.partition(".")[0] not in FOREIGN and vars(value):
                yield _named(path, name), value


def _contents(owner: object) -> Contents:
    """The attributes that a forward pass may read, containers copied."""
    attributes = vars(owner)
    if isinstance(owner, nn.Module):
        torchs = type(owner).__module__.startswith("torch.nn.")
        attributes = {
            name: value for name, value in attributes.items() if name not in _READY and not (torchs and name in SIZES)
        }
    return {name: _kept(value) for name, value in attributes.items()}


def _kept(value: object) -> object:
    if isinstance(value, list | dict | set) and len(value) <= SMALL:
        return value.copy()
    if isinstance(value, np.ndarray) and value.size <= SMALL**2:
        return value.copy()
    return value


def _tensors(path: str, contents: Contents) -> Iterator[tuple[str, Tensor]]:
    """Tensors that are neither parameters nor buffers, also in containers and in modules that stand in containers."""
    for name, value in contents.items():
        several = value.values() if isinstance(value, dict) else value
        items = list(several) if isinstance(value, list | tuple | dict) and len(value) <= SMALL else [value]
        for place, item in enumerate(items):
            inner = item.parameters() if isinstance(item, nn.Module) else [item]
            where = _named(path, name) if items[0] is value else f"{_named(path, name)}[{place}]"
            for tensor in inner:
                if isinstance(tensor, Tensor) and not tensor.is_inference():
                    yield where, tensor


def _hooks(module: nn.Module) -> dict[str, tuple[object, ...]]:
    """The user's forward hooks, by module."""
    found: dict[str, tuple[object, ...]] = {}
    for path, child in module.named_modules():
        # taken out whole: another thread's pass may attach its hooks between two steps of a loop
        attached = [hook for name in HOOKS for hook in tuple((_dict(child, name) or {}).values())]
        if hooks := tuple(hook for hook in attached if not isinstance(hook, PassHook)):
            found[path] = hooks
    return found


def _dict(module: nn.Module, name: str) -> dict[str, object] | None:
    """One of a module's own dicts; those of a scripted module are none."""
    value = vars(module).get(name)
    return value if isinstance(value, dict) else None


def _weights(module: nn.Module) -> frozenset[str]:
    """The names of parameters and buffers."""
    named = (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    return frozenset(name for tensors in named for name, _ in tensors)


def _submodules(module: nn.Module) -> dict[str, nn.Module]:
    return {path: child for path, child in module.named_modules(remove_duplicate=False) if path}


def _same(old: Any, new: Any) -> bool:
    if old is new:
        return True
    if type(old) is not type(new) or isinstance(old, Tensor):
        return False
    if isinstance(old, np.ndarray):
        return np.array_equal(old, new, equal_nan=old.dtype.kind == "f")
    try:
        return bool(old == new)
    except (RuntimeError, ValueError, TypeError):
        return False


def _gathered(values: dict[str, object], names: tuple[str, ...]) -> Any:
    """What `itemgetter` of the names gives."""
    gathered = tuple(values[name] for name in names)
    return gathered[0] if len(gathered) == 1 else gathered


def _nothing(_: dict[str, object]) -> tuple[()]:
    return ()


def _named(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _text(value: object) -> str:
    if value is MISSING:
        return "nothing"
    if isinstance(value, Tensor | np.ndarray):
        return f"a {type(value).__name__} {list(value.shape)}"
    if isinstance(value, nn.Module) or callable(value):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 40 else f"a {type(value).__name__}"
