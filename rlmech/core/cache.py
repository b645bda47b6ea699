"""The activations of one forward pass: a read-only mapping from hook names to labelled tensors.

Tensors are the values as they were when the pass ended; one that somebody changes in place afterwards is refused.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from rlmech.axes import Axis
from rlmech.errors import CacheError, MissingFileError, SiteError, nearest
from rlmech.files import DamagedError, read_sealed, write_sealed
from rlmech.habits import OF_CACHE, unknown_name

FORMAT = "rlmech.cache/2"


class ActivationCache(Mapping[str, Tensor]):
    """What a forward pass computed, by hook name.

    Args:
        values: Tensors by hook name, the batch first.
        axes: Axis names of each.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(3, 4))
        >>> scores, cache = policy.run_with_cache(torch.rand(8, 4))
        >>> cache["hook_q_values"].shape, cache.axes("hook_q_values")
        (torch.Size([8, 2]), ('batch', 'action'))
    """

    def __init__(self, values: Mapping[str, Tensor], *, axes: Mapping[str, tuple[Axis, ...]]) -> None:
        self._values: dict[str, Tensor | None] = dict(values)
        self._axes = axes
        self._versions = {name: _version(value) for name, value in values.items()}
        self._deferred: dict[str, Callable[[], Tensor]] = {}

    def defer(self, name: str, compute: Callable[[], Tensor]) -> None:
        """Offer a value that is computed when somebody first asks for it."""
        self._values[name] = None
        self._deferred[name] = compute

    def __getitem__(self, name: str) -> Tensor:
        try:
            value = self._values[name]
        except (KeyError, TypeError):
            return self[self._only(name)]
        if value is None:
            self._values[name] = value = self._deferred.pop(name)()
            self._versions[name] = _version(value)
        if _version(value) != (was := self._versions[name]):
            raise CacheError(
                f"The cached value of {name!r}, or one that shares its memory, was changed in place.",
                given=f"version {_version(value)}",
                expected=f"version {was}",
                fix="work on cache[name].clone(); an edit belongs into policy.edited([...])",
            )
        return value.clone() if value.is_inference() else value  # those keep no count of in-place changes

    def __deepcopy__(self, memo: dict[int, object]) -> ActivationCache:
        """The values as they are, apart from the pass that made them, as on a file."""
        return ActivationCache({name: self[name].detach().clone() for name in self}, axes=dict(self._axes))

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise unknown_name("ActivationCache", name, vars(ActivationCache), OF_CACHE)

    def __repr__(self) -> str:
        return f"ActivationCache of {len(self)} activations, batch {self.batch_size}: {', '.join(self)}"

    @property
    def batch_size(self) -> int:
        """Rows of the batch."""
        return next((value.shape[0] for value in self._values.values() if value is not None), 0)

    def axes(self, name: str) -> tuple[Axis, ...]:
        """Axis names of an activation.

        Raises:
            SiteError: Nothing of that name is cached.
        """
        if name not in self._values:
            raise self._missing(name)
        return self._axes[name]

    def to(self, device: str | torch.device) -> ActivationCache:
        """A cache with the same values on another device."""
        return self._with({name: self[name].to(device) for name in self})

    def detach(self) -> ActivationCache:
        """A cache with the same values cut off from the autograd graph."""
        return self._with({name: self[name].detach() for name in self})

    def select(self, rows: slice | list[int] | Tensor) -> ActivationCache:
        """A cache of some rows of the batch; one index would lose the batch axis, so give a slice or a list."""
        if isinstance(rows, int):
            raise CacheError(
                "A single row would lose the batch axis.",
                given=rows,
                expected="a slice, a list or an index tensor",
                fix=f"cache.select(slice({rows}, {rows + 1}))",
            )
        return self._with({name: self[name][rows] for name in self})

    def stack(self, names: str | Iterable[str] | None = None) -> Tensor:
        """Activations of one shape, stacked along a new first axis, `site`.

        Args:
            names: Names or globs; None for all.

        Raises:
            SiteError: A name matches nothing.
            CacheError: Their shapes differ.

        Example:
            >>> import torch, rlmech as rlm
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
            >>> _, cache = rlm.HookedPolicy(net, torch.rand(3, 4)).run_with_cache(torch.rand(8, 4))
            >>> cache.stack(["0.hook_out", "1.hook_out"]).shape
            torch.Size([2, 8, 3])
        """
        patterns = ["*"] if names is None else [names] if isinstance(names, str) else list(names)
        names = [name for pattern in patterns for name in self._matching(pattern)]
        shapes = {name: tuple(self[name].shape) for name in names}
        if not names or len(set(shapes.values())) > 1:
            raise CacheError(
                "Only activations of one shape can be stacked.",
                given=shapes,
                expected="at least one name, and the same shape for all",
                fix="choose names of one kind, e.g. those of one attention block",
            )
        return torch.stack([self[name] for name in names])

    def save(self, path: str | Path) -> Path:
        """Write the cache to a safetensors file, in one step, replacing a file of that name.

        Raises:
            CacheError: There is a directory of that name, or none to put the file in.
        """
        path = Path(path)
        if path.is_dir() or not path.parent.is_dir():
            raise CacheError(
                f"A cache cannot be saved as {str(path)!r}.",
                given="a directory of that name" if path.is_dir() else f"no directory {str(path.parent)!r}",
                expected="the name of a file, in a directory that exists",
                fix=f"give a file's name, e.g. {str(path / 'cache.safetensors')!r}"
                if path.is_dir()
                else "make it first",
            )
        meta = {
            "format": FORMAT,
            "axes": json.dumps({name: list(self._axes[name]) for name in self}),
        }
        values = {name: self[name].detach().cpu().contiguous().clone() for name in self}
        write_sealed(path, values, metadata=meta)
        return path

    @classmethod
    def load(cls, path: str | Path) -> ActivationCache:
        """Read a cache that `save` wrote; nothing is unpickled.

        Raises:
            MissingFileError: There is no such file.
            CacheError: It is no cache, or damaged.
        """
        path = Path(path)
        if not path.exists():
            raise MissingFileError(
                f"There is no cache at {path}.",
                given=str(path),
                expected="a file that cache.save wrote",
                fix="look at the path, or save one: cache.save(path)",
            )
        try:
            values, meta = read_sealed(path)
            written = meta.get("format")
            axes = {name: tuple(names) for name, names in json.loads(meta["axes"]).items()} if written == FORMAT else {}
            values = {name: values[name] for name in axes}
        except (DamagedError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CacheError(
                f"{path} cannot be read.",
                given=str(error),
                expected="a file as ActivationCache.save wrote it, bit for bit",
                fix="save the cache again",
            ) from error
        if written != FORMAT:
            raise CacheError(
                f"{path} is no activation cache.",
                given=f"format {written!r}",
                expected=f"format {FORMAT!r}",
                fix="give a file that ActivationCache.save wrote",
            )
        return cls(values, axes=axes)

    def _with(self, values: Mapping[str, Tensor]) -> ActivationCache:
        return ActivationCache(values, axes=self._axes)

    def _matching(self, pattern: str) -> list[str]:
        found = [pattern] if pattern in self._values else fnmatch.filter(self._values, pattern)
        if not found:
            raise self._missing(pattern)
        return found

    def _only(self, name: object) -> str:
        """The one name that a glob matches."""
        found = fnmatch.filter(self._values, name) if isinstance(name, str) else []
        if len(found) == 1:
            return found[0]
        if not found:
            raise self._missing(name)
        raise SiteError(
            f"{name!r} matches {len(found)} activations.",
            given=repr(name),
            expected=f"one of {', '.join(map(repr, found[:6]))}{'...' if len(found) > 6 else ''}",
            fix=f"cache[{found[0]!r}], or cache.stack({name!r}) for all of them",
        )

    def _missing(self, name: object) -> SiteError:
        wanted = name[0] if isinstance(name, tuple) and name else name  # ("pattern", 0), as in TransformerLens
        close = nearest(str(wanted), self._values)
        return SiteError(
            f"The cache holds no {name!r}.",
            given=repr(name),
            expected=f"one of {len(self)} names" + (f", e.g. {close[0]!r}" if close else ""),
            fix=f"did you mean {close[0]!r}?" if close else f"ask for it: run_with_cache(obs, names={str(wanted)!r})",
        )


def _version(value: Tensor) -> int:
    try:
        return value._version  # torch's own counter of in-place changes
    except RuntimeError:  # tensors made in inference mode keep none
        return 0
