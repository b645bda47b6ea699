"""An environment's whole state, bits and types, and two environments stepped side by side."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from rlmech.simulators.highway.fast import accelerate

DRAWN_AT_RESET = ("action", "action_reward", "lane_change_reward")


def state_of(env: Any) -> dict[str, Any]:
    """Every attribute of every vehicle, object and lane, with its type, bits as they are."""
    base = env.unwrapped
    road = base.road
    names = {id(road): "road", id(base): "env", id(road.network): "network"}
    names |= {id(lane): f"lane {index}" for index, lane in road.network.lanes_dict().items()}
    everyone = [*road.vehicles, *road.objects]
    return {
        "vehicles": [
            {"class": type(one).__name__} | {key: _bits(value, names) for key, value in sorted(vars(one).items())}
            for one in everyone
        ],
        "controlled": [next(i for i, v in enumerate(everyone) if v is one) for one in base.controlled_vehicles],
        "lanes": [{key: _bits(value, {}) for key, value in vars(lane).items()} for lane in road.network.lanes_list()],
        "road": {key: _bits(value, names) for key, value in vars(road).items() if key not in ("vehicles", "objects")},
        "env": (base.steps, base.time, base.done, base.enable_auto_render, repr(base.config)),
        "generator": repr(base.np_random.bit_generator.state),
    }


def _bits(value: Any, names: dict[int, str]) -> Any:
    if id(value) in names:
        return names[id(value)]
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, float):  # np.float64 too
        return type(value).__name__, float(value).hex()
    if isinstance(value, dict):
        return {key: _bits(part, names) for key, part in value.items()}
    if isinstance(value, list | tuple | deque):
        return type(value).__name__, [_bits(part, names) for part in value]
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    return type(value).__name__, repr(value)


def told(result: tuple[Any, ...]) -> Any:
    """What `reset` or `step` returned, bits and types."""
    return _bits(result, {})


def differences(one: Any, other: Any, at: str = "") -> Iterator[str]:
    """Where two nested values differ, for a message that can be read."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from differences(one[key], other[key], f"{at}.{key}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from differences(a, b, f"{at}[{i}]")
    elif one != other:
        yield f"{at}: {one!r} is not {other!r}"


def same(stock: Any, fast: Any, result: Any, fast_result: Any) -> None:
    """Raise where what two environments told, or what they are, differs in a bit."""
    found = list(differences((told(result), state_of(stock)), (told(fast_result), state_of(fast))))
    assert not found, "\n".join(found[:8])


def step_alike(stock: Any, fast: Any, *, seeds: Any, choose: Any, most: int = 60) -> int:
    """Whole episodes of two environments, compared after every step; the number of steps."""
    steps = 0
    for seed in seeds:
        result, fast_result = stock.reset(seed=seed), fast.reset(seed=seed)
        for told_at_reset in (result[1], fast_result[1]):  # highway-env draws them from a generator without a seed
            for name in DRAWN_AT_RESET:
                told_at_reset.pop(name, None)
                told_at_reset.get("rewards", {}).pop(name, None)
        same(stock, fast, result, fast_result)
        draw = np.random.default_rng(seed)
        for _ in range(most):
            action = choose(result[0], stock.action_space, draw)
            result = stock.step(copy.deepcopy(action))
            same(stock, fast, result, fast.step(copy.deepcopy(action)))
            steps += 1
            if np.all(result[2]) or result[3]:
                break
    return steps


def at_random(observation: Any, space: Any, draw: np.random.Generator) -> Any:
    """An action that depends on nothing but the draw."""
    del observation
    space.seed(int(draw.integers(2**31)))
    return space.sample()


def pair(make: Any) -> tuple[Any, Any]:
    """The same environment twice: stock and accelerated."""
    stock, fast = make(), make()
    accelerate(fast)
    return stock, fast
