"""Training of sparse dictionaries on vectors: Adam on the reconstruction error, directions of length one.

    topk         the k largest codes of each vector       Gao et al. 2024, arXiv 2406.04093, with its auxiliary loss
    batch_topk   the k largest a vector, over a batch      Bussmann et al. 2024, arXiv 2412.06410
    jump_relu    codes above learned thresholds            Rajamanoharan et al. 2024, arXiv 2407.14435, aiming at k

Cost: three products [batch number] x [number feature] a step, forward and back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rlmech.features.dictionary import LearnedKind

BATCH = 1024
RATE = 3e-3
DEAD_AFTER = 50
"""Steps without a use after which a feature counts as dead, and learns what the others leave."""
_AUXILIARY = 1 / 32
_WIDTH = 0.05
"""Width of the kernel in which a threshold has a gradient, in standard deviations of the value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A dictionary of centred vectors of unit scale."""

    encoder: Float[Tensor, "feature number"]
    bias: Float[Tensor, " feature"]
    decoder: Float[Tensor, "feature number_out"]
    threshold: Float[Tensor, " feature"] | None


def train(
    x: Float[Tensor, "row number"],
    y: Float[Tensor, "row number_out"],
    *,
    n_features: int,
    k: int,
    kind: LearnedKind,
    n_steps: int,
    generator: torch.Generator,
) -> Trained:
    """Learn to write `y` as few directions that are read off `x`, both centred and of unit scale."""
    decoder = _unit(torch.randn(n_features, y.shape[1], generator=generator))
    own = decoder if x.shape[1] == y.shape[1] else _unit(torch.randn(n_features, x.shape[1], generator=generator))
    parameters = [own.clone().requires_grad_(), torch.zeros(n_features).requires_grad_(), decoder.requires_grad_()]
    encoder, bias, decoder = parameters
    threshold = torch.full((n_features,), 0.1).log().requires_grad_()
    parameters += [threshold] if kind == "jump_relu" else []
    adam = torch.optim.Adam(parameters, lr=RATE, betas=(0.9, 0.99))
    slower = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: min(1.0, 5 * (1 - step / n_steps)))
    idle = torch.zeros(n_features, dtype=torch.long)
    size = min(BATCH, len(x))
    with torch.enable_grad():
        for step in range(n_steps):
            rows = torch.randint(len(x), (size,), generator=generator)
            seen, wanted = x[rows], y[rows]
            before = seen @ encoder.T + bias
            penalty = torch.zeros(())
            if kind == "jump_relu":
                codes, active = _jump(before, threshold)
                warm = min(1.0, 4 * step / n_steps)
                penalty = warm * (active.sum(1).mean() / k - 1).square()
            else:
                codes = _largest(before.clamp(min=0), k, together=kind == "batch_topk")
            error = wanted - codes @ decoder
            used = (codes.detach() != 0).any(0)
            idle = torch.where(used, 0, idle + 1)
            loss = error.square().sum(1).mean() / y.shape[1] + penalty
            dead = idle > DEAD_AFTER
            if bool(dead.any()):
                loss = loss + _AUXILIARY * _of_dead(before, dead, decoder, error.detach(), k)
            gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            with torch.no_grad():  # a step along its direction would only change a direction's length
                along = (decoder.grad * decoder).sum(1, keepdim=True)  # type: ignore[operator]
                decoder.grad -= along * decoder  # type: ignore[operator]
            adam.step()
            slower.step()
            with torch.no_grad():
                decoder.copy_(_unit(decoder))
    above: Tensor | None = None
    with torch.no_grad():
        if kind == "jump_relu":
            above = threshold.exp()
        elif kind == "batch_topk":
            above = _common_threshold(x @ encoder.T + bias, k).expand(n_features).clone()
    return Trained(encoder=encoder.detach(), bias=bias.detach(), decoder=decoder.detach(), threshold=above)


def _largest(codes: Tensor, k: int, *, together: bool) -> Tensor:
    """The k largest codes of each vector, or as many of all vectors together."""
    if k >= codes.shape[1]:
        return codes
    if together:
        least = codes.flatten().topk(k * len(codes)).values[-1]
        return torch.where(codes >= least, codes, 0.0)
    found = codes.topk(k, dim=1)
    return torch.zeros_like(codes).scatter(1, found.indices, found.values)


def _of_dead(before: Tensor, dead: Tensor, decoder: Tensor, error: Tensor, k: int) -> Tensor:
    """What dead features would explain of the error, so that they come back."""
    codes = _largest(before[:, dead].clamp(min=0), 2 * k, together=False)
    return (error - codes @ decoder[dead]).square().sum(1).mean() / error.shape[1]


def _common_threshold(before: Tensor, k: int) -> Tensor:
    """The threshold above which there are k codes a vector, on average."""
    rows = before[:8192].clamp(min=0).flatten()
    return rows.topk(min(len(rows), k * min(len(before), 8192))).values[-1].clamp(min=1e-6) * (1 - 1e-6)


def _unit(directions: Tensor) -> Tensor:
    return directions / directions.norm(dim=1, keepdim=True).clamp(min=1e-12)


class _JumpReLU(torch.autograd.Function):
    """value * (value > threshold), with the gradient of its expectation over a kernel around the threshold."""

    @staticmethod
    def forward(value: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        active = (value > threshold).to(value)
        return value * active, active

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: object) -> None:
        ctx.save_for_backward(*inputs)  # type: ignore[attr-defined]

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: torch.autograd.function.FunctionCtx, of_code: Tensor, of_active: Tensor
    ) -> tuple[Tensor, Tensor]:
        value, threshold = ctx.saved_tensors  # type: ignore[attr-defined]
        near = ((value - threshold).abs() < _WIDTH / 2).to(value) / _WIDTH
        moved = -(threshold * near * of_code + near * of_active)
        return of_code * (value > threshold), moved.sum(0)


def _jump(before: Tensor, log_threshold: Tensor) -> tuple[Tensor, Tensor]:
    return _JumpReLU.apply(before, log_threshold.exp())  # type: ignore[no-any-return]
