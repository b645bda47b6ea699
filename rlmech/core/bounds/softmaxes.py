"""Softmax over a box of its scores: exact ranges of each weight, and what its tangent at a point leaves over.

    w_i(s) = 1 / sum_j exp(s_j - s_i)                rising in its own score, falling in all others
    w_i(s + d) - tangent = w_i ((d_i - m)^2 - v) / 2     m and v: mean and variance of d by the weights on the way

So each weight is least and greatest at a corner, and what the tangent leaves over is of second order, from the weights'
own ranges. A score of minus infinity is a weight of 0. A mean by weights between given ends that add up to 1 is
greatest where the largest values get as much as they may.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def weight_range(
    low: Float[Tensor, "*rows key"], high: Float[Tensor, "*rows key"]
) -> tuple[Float[Tensor, "*rows key"], Float[Tensor, "*rows key"]]:
    """The least and the greatest of each weight.

    Args:
        low: The least scores.
        high: The greatest.
    """
    return _one_against(low, high), _one_against(high, low)


def tangent_remainder(
    at: Float[Tensor, "*rows key"], low: Float[Tensor, "*rows key"], high: Float[Tensor, "*rows key"]
) -> tuple[Float[Tensor, "*rows key"], Float[Tensor, "*rows key"]]:
    """The range of the weights less their tangent, for scores between two ends.

    Args:
        at: Where the tangent touches, between the ends.
        low: The least scores.
        high: The greatest.
    """
    least, most = weight_range(low, high)
    hidden = torch.isneginf(high)
    down, up = (torch.where(hidden, 0.0, end - at) for end in (low, high))
    open_ = most > 0  # what has no weight anywhere counts in no mean
    lowest = torch.where(open_, down, torch.inf).amin(-1, keepdim=True)
    highest = torch.where(open_, up, -torch.inf).amax(-1, keepdim=True)
    spread = highest - lowest
    farthest = torch.maximum(up.abs(), down.abs())
    variance = torch.minimum((spread / 2) ** 2, (most * farthest**2).sum(-1, keepdim=True))
    apart = torch.maximum(up[..., :, None] - down[..., None, :], up[..., None, :] - down[..., :, None])
    apart = apart.masked_fill(torch.eye(at.shape[-1], dtype=torch.bool, device=at.device) | ~open_[..., None, :], 0.0)
    from_mean = torch.minimum((most[..., None, :] * apart).sum(-1), (1 - least) * apart.amax(-1))
    lower, upper = -most * variance / 2, most * from_mean**2 / 2
    return torch.where(open_, lower, 0.0), torch.where(open_, upper, 0.0)


def _one_against(own: Tensor, others: Tensor) -> Tensor:
    """Each weight with its own score as in one array and all others as in another."""
    hidden = torch.isneginf(own)
    lead = others[..., None, :] - torch.where(hidden, 0.0, own)[..., :, None]
    lead = lead.masked_fill(torch.eye(own.shape[-1], dtype=torch.bool, device=own.device), 0.0)
    return torch.where(hidden, 0.0, 1 / lead.exp().sum(-1))


def mean_range(
    weights: tuple[Float[Tensor, "*rows query key"], Float[Tensor, "*rows query key"]],
    values: tuple[Float[Tensor, "*rows key d_head"], Float[Tensor, "*rows key d_head"]],
    slack: Float[Tensor, "*rows query"],
) -> tuple[Float[Tensor, "*rows query d_head"], Float[Tensor, "*rows query d_head"]]:
    """The range of means of values by weights that add up to 1.

    Args:
        weights: The least and the greatest weights.
        values: The least and the greatest values.
        slack: How far rounding may move the sum of the weights from 1.
    """
    low, high = values
    return -_greatest_mean(weights, -low, slack), _greatest_mean(weights, high, slack)


def _greatest_mean(weights: tuple[Tensor, Tensor], value: Tensor, slack: Tensor) -> Tensor:
    least, most = (each[..., :, None, :].clamp(min=0) for each in weights)  # *rows query 1 key
    value = value.transpose(-1, -2)[..., None, :, :]  # *rows 1 d_head key
    ordered, order = value.sort(dim=-1, descending=True)
    room = (most - least).clamp(min=0).expand(*torch.broadcast_shapes(most.shape, value.shape))
    room = room.gather(-1, order.expand_as(room))
    left = (1 - least.sum(-1, keepdim=True)).clamp(min=0)
    given = (left - (room.cumsum(-1) - room)).clamp(min=0)
    found = (least * value).sum(-1) + (torch.minimum(given, room) * ordered).sum(-1)
    open_ = most > 0
    return found + slack[..., None] * torch.where(open_, value.abs(), 0.0).amax(-1)
