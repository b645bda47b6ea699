"""Observations: what a policy takes, checked and turned into the tensors that its graph reads.

NaN is found by comparing the observation with itself, half a microsecond for a single one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from rlmech.errors import ObservationError, StateError

Observation = np.ndarray | Tensor | Mapping[str, Any]
SMALL = 2048


class ObservationFormat:
    """Structure, shapes and dtypes of a policy's observations, taken from an example.

    Args:
        example: A batch of observations: an array or tensor, or a dict of them.
        images: Keys of images, channels first; those that come with the channels last are turned round, as
            Stable-Baselines3 does.

    Attributes:
        states: Names of the arrays that are parts of a recurrent state, the last ones.
        n_steps: Steps of a sequence, where an observation is one; else None.
    """

    def __init__(self, example: Observation, *, images: Collection[str] = ()) -> None:
        self.images = frozenset(images)
        if isinstance(example, list | tuple) and any(
            isinstance(part, Tensor | np.ndarray) and np.ndim(part) for part in example
        ):
            raise self._misfit(
                f"a {type(example).__name__} of {len(example)} arrays",
                "one array, or a dict of them",
                "give several arrays as a dict, by the names that forward has for them; stack the rows of a single one",
            )
        self.is_dict = isinstance(example, Mapping)
        self.states: tuple[str, ...] = ()
        self.n_steps: int | None = None
        arrays = {str(key): value for key, value in example.items()} if isinstance(example, Mapping) else {"": example}
        if not arrays:
            raise self._misfit("an empty dict", "at least one array")
        self.example = {key: _as_tensor(key, value) for key, value in arrays.items()}
        for key, value in self.example.items():
            if value.ndim == 0 or value.shape[0] == 0:
                raise self._misfit(f"an example{_of(key)} of shape {list(value.shape)}", "a batch of at least one row")
        self.shapes = {key: value.shape[1:] for key, value in self.example.items()}
        self.dtypes = {key: value.dtype for key, value in self.example.items()}
        self._shape = self.shapes.get("", torch.Size())
        self._rank = len(self._shape) + 1

    def coerce(self, obs: Observation, module: nn.Module) -> tuple[Tensor, ...]:
        """The observation's tensors, checked: structure, shape, dtype and NaN.

        Args:
            obs: A batch of observations.
            module: The policy's network, whose device and float dtype floats are taken to.

        Raises:
            ObservationError: It is not what the policy takes.
        """
        if (
            type(obs) is Tensor
            and obs.dtype is self.dtypes.get("")
            and obs.shape[1:] == self._shape
            and obs.ndim == self._rank
            and not _has_nan(obs)
        ):
            return (obs,)
        if isinstance(obs, Mapping) != self.is_dict:
            raise self._misfit(
                f"a {type(obs).__name__}", "a dict of arrays" if self.is_dict else "an array or a tensor"
            )
        if isinstance(obs, Mapping):
            if set(obs) != set(self.shapes):
                raise self._misfit(f"keys {sorted(map(str, obs))}", f"keys {sorted(self.shapes)}")
            tensors = tuple(self._coerce_one(key, obs[key], module) for key in self.shapes)
            if len({tensor.shape[0] for tensor in tensors}) > 1:
                raise self._misfit(f"batch sizes {[tensor.shape[0] for tensor in tensors]}", "one batch size")
            return tensors
        return (self._coerce_one("", obs, module),)

    def state(self, given: Any, module: nn.Module, *, n_rows: int) -> dict[str, Tensor]:
        """The state of a policy without memory: none.

        Raises:
            StateError: One is given.
        """
        if given:
            raise StateError(
                "The policy has no state.",
                given=f"a state of {len(given)} parts",
                expected="None: it decides by the observation alone",
                fix="leave the state out; a recurrent module is wrapped as HookedPolicy(module, obs, state=...)",
            )
        return {}

    def with_state(self, obs: Observation, state: Mapping[str, Any] | None, module: nn.Module) -> Observation:
        """The observations themselves.

        Raises:
            StateError: A state is given.
        """
        self.state(state, module, n_rows=0)
        return obs

    def n_steps_of(self, obs: Observation) -> int | None:
        """Steps of observations that are sequences of what a recurrent policy takes; None where they are not."""
        return None

    def restarted(self, obs: Observation, starts: Any) -> Observation:
        """The observations themselves, of a policy that remembers nothing."""
        return obs

    def resized(self, shapes: Mapping[str, tuple[int, ...]]) -> ObservationFormat:
        """The same format with arrays of other shapes: rows anew, or the first axis repeated or cut.

        Args:
            shapes: Of single observations, by key.
        """
        arrays = self._resized(shapes)
        other = ObservationFormat(arrays if self.is_dict else arrays[""], images=self.images)
        other.dtypes = dict(self.dtypes)
        return other

    def _resized(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """The example's own arrays in other shapes."""
        arrays: dict[str, Tensor] = {}
        for key, own in self.observed.items():
            value, shape = self.example[key], tuple(shapes.get(key, own))
            if shape != tuple(own):
                same = value[0].numel() == torch.Size(shape).numel()
                value = value.reshape(-1, *shape) if same else value[:, torch.arange(shape[0]) % own[0]]
            arrays[key] = value
        return arrays

    def retype(self, dtype: torch.dtype) -> None:
        """Take floats of another precision from now on."""
        self.dtypes = {key: dtype if old.is_floating_point else old for key, old in self.dtypes.items()}
        self.example = {key: value.to(self.dtypes[key]) for key, value in self.example.items()}

    @property
    def is_sequence(self) -> bool:
        """Whether an observation is one of several steps."""
        return self.n_steps is not None

    @property
    def observed(self) -> dict[str, torch.Size]:
        """Shapes of the observation's own arrays, without a recurrent state's parts."""
        return {key: shape for key, shape in self.shapes.items() if key not in self.states}

    @property
    def takes_dict(self) -> bool:
        """Whether the observation itself is a dict."""
        return tuple(self.observed) != ("",)

    def argument(self, arrays: tuple[Tensor, ...]) -> Tensor | dict[str, Tensor]:
        """The arrays as the module takes them: one, or a dict."""
        return dict(zip(self.shapes, arrays, strict=True)) if self.is_dict else arrays[0]

    def is_single(self, obs: Observation) -> bool:
        """Whether this is one observation without a batch axis."""
        key = next(iter(self.shapes))
        value = obs[key] if isinstance(obs, Mapping) else obs
        shape = self.shapes[key]
        return tuple(np.shape(value)) in (
            (tuple(shape), tuple(_channels_last(shape))) if key in self.images else (shape,)
        )

    def samples(self, n: int) -> tuple[Tensor, ...]:
        """Observations like the example: its rows, repeated, with a little noise where they are floats."""
        generator = torch.Generator().manual_seed(0)
        rows = {key: value[torch.arange(n) % value.shape[0]].clone() for key, value in self.example.items()}
        for value in rows.values():
            if value.is_floating_point() and n:
                noise = torch.randn(value.shape, generator=generator, dtype=torch.float64) * 0.1
                value += noise.to(value)
        return tuple(rows.values())

    def _coerce_one(self, key: str, value: Any, module: nn.Module) -> Tensor:
        tensor, dtype, shape = _as_tensor(key, value), self.dtypes[key], self.shapes[key]
        if key in self.images and tensor.shape[1:] == _channels_last(shape) != shape:
            tensor = tensor.permute(0, 3, 1, 2)
        if tensor.shape[1:] != shape or tensor.ndim != len(shape) + 1:
            hint = "add a batch axis: obs[None]" if tensor.shape == shape else "give observations of the policy's shape"
            raise self._misfit(
                f"shape {list(tensor.shape)}{_of(key)}", f"[batch{''.join(f' {n}' for n in shape)}]", hint
            )
        if tensor.dtype != dtype:
            if not (tensor.is_floating_point() and dtype.is_floating_point) and not _lossless(tensor.dtype, dtype):
                raise self._misfit(f"dtype {_name(tensor.dtype)}{_of(key)}", f"dtype {_name(dtype)}")
            tensor = tensor.to(dtype)
        device = _device_of(module)
        if device is not None and tensor.device != device:
            tensor = tensor.to(device)
        if _has_nan(tensor):
            rows = torch.isnan(tensor).reshape(tensor.shape[0], -1).any(1).nonzero().reshape(-1).tolist()
            raise self._misfit(
                f"NaN{_of(key)} in rows {rows[:5]}{'…' if len(rows) > 5 else ''}", "numbers", "drop or mend these rows"
            )
        return tensor

    @staticmethod
    def _misfit(
        given: str, expected: str, fix: str = "give observations like those the policy was trained on"
    ) -> ObservationError:
        return ObservationError(
            "The observation is not what the policy takes.", given=given, expected=expected, fix=fix
        )


def batch_of_one(obs: Observation) -> Observation:
    """A single observation as a batch."""
    if isinstance(obs, Mapping):
        return {key: _row(value) for key, value in obs.items()}
    return _row(obs)


def _row(value: Tensor | ArrayLike) -> Tensor | np.ndarray:
    return value[None] if isinstance(value, Tensor) else np.asarray(value)[None]


def image_keys(space: Any) -> frozenset[str]:
    """Keys of the images, channels first, in an observation space; "" where it is one itself."""
    parts = getattr(space, "spaces", None)
    boxes = parts if isinstance(parts, Mapping) else {"": space}
    return frozenset(
        str(key)
        for key, box in boxes.items()
        if hasattr(box, "low")
        and len(box.shape) == 3
        and box.dtype == np.uint8
        and box.shape[0] == min(box.shape)
        and box.shape[0] < box.shape[2]
    )


def _channels_last(shape: torch.Size) -> torch.Size:
    return torch.Size((*shape[1:], shape[0]))


def _as_tensor(key: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    if array.dtype == object or array.dtype.kind not in "biuf":
        raise ObservationError(
            "The observation is not what the policy takes.",
            given=f"an array of dtype {array.dtype}{_of(key)}",
            expected="numbers",
            fix="give a numpy array or a tensor of numbers",
        )
    return torch.as_tensor(np.ascontiguousarray(array) if array.flags.writeable else array.copy())


_first_parameter: WeakKeyDictionary[nn.Module, tuple[dict[str, Any], str]] = WeakKeyDictionary()
"""Where a module's first parameter is kept: walking to it takes a quarter of a small network's forward pass."""


def _device_of(module: nn.Module) -> torch.device | None:
    """Where a module's first parameter lies now; None where it has none."""
    owner, name = _first_parameter.get(module, ({}, ""))
    parameter = owner.get(name)
    if parameter is None:
        for child in module.modules():
            for own, value in (vars(child).get("_parameters") or {}).items():
                if value is not None:
                    _first_parameter[module] = vars(child)["_parameters"], own
                    return value.device
        parameter = next(module.parameters(), None)  # a module of its own kind, such as a scripted one
    return None if parameter is None else parameter.device


def _has_nan(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.is_meta or is_functorch_wrapped_tensor(tensor):
        return False
    if tensor.numel() <= SMALL:
        return not torch.equal(tensor, tensor)
    return bool(torch.isnan(tensor.detach().sum())) and bool(torch.isnan(tensor).any())


def _lossless(given: torch.dtype, wanted: torch.dtype) -> bool:
    """Integers of another width are the same integers; anything else would change what the numbers mean."""
    integer = not (given.is_floating_point or wanted.is_floating_point) and torch.bool not in (given, wanted)
    return integer and torch.iinfo(given).bits <= torch.iinfo(wanted).bits


def _of(key: str) -> str:
    return f" in {key!r}" if key else ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
