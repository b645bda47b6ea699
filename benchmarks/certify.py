"""Certified radii of the shipped policies' states: their cost, and how much they exceed other bounds' radii.

CPU seconds of one thread for all states, with the attack that they stand beside; the share of the attacked radius that
is certified says how near the truth they are at least. Intervals certify nothing in most states, for they multiply what
single precision rounds: they are given a copy of the policy in double precision too. `soundness` looks for states that
leave a bound: samples, corners among them, and gradient attacks, in the networks' own precision.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

import rlmech as rlm
from benchmarks import lipschitz

_MOVES = {
    "x, y of vehicle_1": rlm.certify.Move(features=["x", "y"], entities=["vehicle_1"]),
    "all that is there": rlm.certify.Move(),
}
_N_LIPSCHITZ = 40


def states(name: str, n: int) -> np.ndarray:
    """States that a policy drives into, spread over its episodes."""
    policy = rlm.load(f"zoo:{name}")
    seen = rlm.record(policy, rlm.make_env(policy.spec), seeds=range(max(2, n // 5)), progress=False).observations
    return np.asarray(seen)[np.linspace(0, len(seen) - 1, n).astype(int)]


def measure(*, n: int = 200) -> Iterator[dict[str, object]]:
    """A row for each policy, move and bound."""
    for name, moves in {"intersection-ego-attention": _MOVES, "highway-dqn-mlp": dict([*_MOVES.items()][1:])}.items():
        policy, seen = rlm.load(f"zoo:{name}"), states(name, n)
        parts = copy.deepcopy(policy.module).double()  # SB3's own forward goes back to single precision
        module = nn.Sequential(parts.features_extractor, parts.q_net)
        precise = rlm.HookedPolicy(module, torch.as_tensor(seen[:2]).double(), spec=policy.spec)
        for what, move in moves.items():
            radii: dict[str, np.ndarray] = {}
            for bounds, one, method in (
                ("linear", policy, "linear"),
                ("interval", policy, "interval"),
                ("interval, double precision", precise, "interval"),
            ):
                start = time.thread_time()
                found = rlm.certify.certified_radius(
                    one, seen.astype(np.float64 if one is precise else np.float32), move=move, method=method, n_boxes=0
                )
                seconds = time.thread_time() - start
                radii[bounds] = found.certified.values
                share = found.certified.values / np.minimum(found.attacked.values, found.limit.values)
                yield _row(name, what, bounds, seconds, radii, share, found.certified.attrs["units"])
            for local in (False, True):
                bounds, start = (
                    f"Lipschitz, {'near the state' if local else 'norms of the weights'}",
                    time.thread_time(),
                )
                few = np.linspace(0, n - 1, min(n, _N_LIPSCHITZ)).astype(int)
                radii[bounds] = np.full(n, np.nan)
                radii[bounds][few] = lipschitz.radii(policy, seen[few], move, local=local)
                share = radii[bounds] / np.minimum(found.attacked.values, found.limit.values)
                yield _row(name, what, bounds, time.thread_time() - start, radii, share, found.certified.attrs["units"])


def _row(
    name: str, move: str, bounds: str, seconds: float, radii: dict[str, np.ndarray], share: np.ndarray, unit: str
) -> dict[str, object]:
    own, linear = radii[bounds], radii["linear"]
    both = (own > 0) & (linear > 0)
    known = np.isfinite(own)
    return {
        "policy": name,
        "moves": move,
        "bounds": bounds,
        "states": int(known.sum()),
        "CPU_seconds": seconds,
        "median_radius": float(np.nanmedian(own)),
        "unit": unit,
        "share_of_attacked": float(np.nanmedian(share)),
        "nothing_certified": float((own[known] == 0).mean()),
        "linear_is_times": float(np.median(linear[both] / own[both])) if both.any() else None,
        "compared": int(both.sum()),
    }


def soundness(*, n_samples: int = 1_000_000) -> Iterator[dict[str, object]]:
    """A row for each network and size of box: how many scores were looked at, how many left their bound."""
    for name, make in _SUBJECTS.items():
        policy, seen = make()
        for radius in (1e-3, 0.05) if seen.is_floating_point() else (1, 8):
            yield {"network": name, "radius": radius, **_leaving(policy, seen, radius, n_samples // 2)}


def _leaving(policy: rlm.HookedPolicy, seen: Tensor, radius: float, n: int) -> dict[str, object]:
    whole = not seen.is_floating_point()  # of pictures, whose numbers take no gradient
    by = radius * _movable(policy, seen)
    low, high = seen - by, seen + by
    if whole:
        low, high = low.clamp(min=0), high.clamp(max=255)
    elif policy.spec.features:
        low, high = torch.maximum(low, seen.clamp(max=-1)), torch.minimum(high, seen.clamp(min=1))
    bounds = {
        method: rlm.certify.score_bounds(policy, seen, box=(low, high), method=method)
        for method in ("linear", "interval")
    }
    generator, nearest, left, drawn = torch.Generator().manual_seed(0), np.inf, 0, 0

    def look(x: Tensor) -> None:
        nonlocal nearest, left, drawn
        with torch.no_grad():
            scores = policy(x).double().numpy()
        drawn += len(x)
        for found in bounds.values():
            off = np.minimum(scores - found.low.values, found.high.values - scores)
            left += int((off < 0).any(1).sum())
            nearest = min(nearest, float((off / (found.high.values - found.low.values)).min()))

    while drawn < n:
        at = torch.rand(seen.shape, generator=generator)
        kind = int(torch.randint(3, (), generator=generator))
        at = (at > 0.5).to(at) if kind == 0 else at
        x = torch.minimum(torch.maximum(low + at * (high - low), low), high)
        look((x.round() if whole else x).to(seen))
    sampled = drawn
    for sign in () if whole else (1, -1):
        for action in range(policy(seen[:1]).shape[1]):
            _ascend(policy, low, high, lambda scores, a=action, s=sign: s * scores[:, a], look)
    return {
        "samples": sampled,
        "attacks": drawn - sampled,
        "left_a_bound": left,
        "nearest_to_a_bound": nearest,  # as a share of the bounds' distance
    }


def _ascend(
    policy: rlm.HookedPolicy,
    low: Tensor,
    high: Tensor,
    value: Callable[[Tensor], Tensor],
    look: Callable[[Tensor], None],
) -> None:
    for seed in range(4):
        x = low + torch.rand(low.shape, generator=torch.Generator().manual_seed(seed)) * (high - low)
        for step in range(8):
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(value(policy(x)).sum(), x)
            x = torch.minimum(torch.maximum(x + (high - low) / (step + 1) * slope.sign(), low), high)
            look(x.detach())


def _movable(policy: rlm.HookedPolicy, seen: Tensor) -> Tensor:
    (reach,) = rlm.certify.Move().reach(policy, (seen,))
    return (reach > 0).float()


def _zoo(name: str) -> Callable[[], tuple[rlm.HookedPolicy, Tensor]]:
    def make() -> tuple[rlm.HookedPolicy, Tensor]:
        policy = rlm.load(f"zoo:{name}")
        return policy, policy.coerce(states(name, 256))[0]

    return make


def _tanh_ppo() -> tuple[rlm.HookedPolicy, Tensor]:
    from stable_baselines3 import PPO

    model = PPO("MlpPolicy", gym.make("CartPole-v1"), seed=0, device="cpu", n_steps=256)
    model.learn(2048)
    return rlm.HookedPolicy.from_sb3(model), torch.randn(256, 4, generator=torch.Generator().manual_seed(0)) * 0.2


def _small_cnn() -> tuple[rlm.HookedPolicy, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    )
    seen = torch.rand(256, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    return rlm.HookedPolicy(net, seen[:2]), seen


_SUBJECTS = {
    "ego attention (zoo)": _zoo("intersection-ego-attention"),
    "perceptron (zoo, highway)": _zoo("highway-dqn-mlp"),
    "perceptron (zoo, MiniGrid)": _zoo("minigrid-doorkey-mlp"),
    "tanh PPO": _tanh_ppo,
    "small CNN": _small_cnn,
}
