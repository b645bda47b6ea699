"""A small network around each operation, in each form in which the operation can be written.

A case maps `[batch 12]` to any tensor with the batch first. Its group says what must be true of it: `affine` and
`gates` are offered by the exact analyses, `bending` is refused by them, or named a tangent.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 12
Function = Callable[[Tensor], Tensor]


def _drawn(*sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(7))


class With(nn.Module):
    """A function of a value and of a fixed array, a buffer, which follows the module's dtype."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *sizes: int) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("array", _drawn(*sizes))

    def forward(self, v: Tensor) -> Tensor:
        return self.function(v, self.get_buffer("array"))


def rows(v: Tensor) -> Tensor:
    """Three rows of four."""
    return v.view(-1, 3, 4)


def image(v: Tensor) -> Tensor:
    """Two channels of 2 x 3."""
    return v.view(-1, 2, 2, 3)


def _layers(*layers: nn.Module) -> Function:
    torch.manual_seed(3)
    return nn.Sequential(*layers)


def _index(v: Tensor) -> Tensor:
    return torch.zeros(v.shape[0], WIDTH, dtype=torch.long)


def _set_item(v: Tensor) -> Tensor:
    v = v.clone()
    v[:, 0] = 0.5
    return v


def _set_part(v: Tensor) -> Tensor:
    v = v.clone()
    v[:, 2:4] = v[:, 6:8] * 2
    return v


def _put(v: Tensor) -> Tensor:
    v = v.clone()
    v[:, [0, 1]] = v[:, 2:4].clone()
    return v


AFFINE: dict[str, Function] = {
    "add a number": lambda v: v + 1,
    "add, reversed": lambda v: 1 + v,
    "add with alpha": With(lambda v, w: torch.add(v, w, alpha=3), WIDTH),
    "add itself": lambda v: v.add(v.flip(1), alpha=2),
    "add in place": lambda v: v.clone().add_(1),
    "subtract": lambda v: v - 0.5,
    "subtract from": lambda v: 0.5 - v,
    "subtract with alpha": lambda v: torch.sub(v, 2 * v.flip(1), alpha=3),
    "rsub with alpha": With(lambda v, w: torch.rsub(v, w, alpha=2), WIDTH),
    "negative": torch.negative,
    "positive": torch.positive,
    "multiply": lambda v: v * 2,
    "multiply with an array": With(torch.multiply, WIDTH),
    "multiply in place": lambda v: v.clone().mul_(2),
    "divide": lambda v: v / 2,
    "true divide": With(lambda v, w: torch.true_divide(v, w.abs() + 1), WIDTH),
    "divide by keyword": lambda v: torch.div(v, 2, rounding_mode=None),
    "addcmul": With(lambda v, w: torch.addcmul(v, v.flip(1), w, value=2), WIDTH),
    "addcmul onto an array": With(lambda v, w: torch.addcmul(w, v, w, value=2), WIDTH),
    "addcdiv": With(lambda v, w: torch.addcdiv(w, v, w.abs() + 1, value=2), WIDTH),
    "lerp": With(lambda v, w: torch.lerp(v, w, 0.3), WIDTH),
    "lerp with an array": With(lambda v, w: torch.lerp(w, v, w.abs()), WIDTH),
    "cumsum": lambda v: v.cumsum(-1),
    "cumsum by keyword": lambda v: torch.cumsum(rows(v), dim=1),
    "sum": lambda v: rows(v).sum(1),
    "sum by keyword": lambda v: torch.sum(rows(v), dim=(2,), keepdim=True),
    "mean": lambda v: rows(v).mean((1, 2), keepdim=True) + rows(v),
    "diff": lambda v: v.diff(dim=-1),
    "where on the array": With(lambda v, w: torch.where(w > 0, v, -2 * v), WIDTH),
    "where with a number": With(lambda v, w: torch.where(w > 0, v, 0.5), WIDTH),
    "where, number first": With(lambda v, w: torch.where(w > 0, 0.5, v), WIDTH),
    "masked fill": With(lambda v, w: v.masked_fill(w > 0, 0.3), WIDTH),
    "masked fill in place": With(lambda v, w: v.clone().masked_fill_(w > 0, 0.3), WIDTH),
    "linear": _layers(nn.Linear(WIDTH, 5)),
    "linear by keyword": With(lambda v, w: F.linear(input=v, weight=w), 5, WIDTH),
    "linear on rows": _layers(nn.Unflatten(1, (3, 4)), nn.Linear(4, 4)),
    "linear, the value its weight": With(lambda v, w: F.linear(w, v).T, 5, WIDTH),
    "mm": With(lambda v, w: torch.mm(v, w), WIDTH, WIDTH),
    "mm, the value second": With(lambda v, w: torch.mm(w, v.T).T, WIDTH, WIDTH),
    "matmul": With(lambda v, w: rows(v) @ w, 4, 2),
    "matmul, the value second": With(lambda v, w: torch.matmul(w, rows(v)), 2, 3),
    "matmul with a vector": With(lambda v, w: rows(v) @ w, 4),
    "matmul of four axes": With(lambda v, w: v.view(-1, 2, 2, 3) @ w, 2, 3, 2),
    "bmm": With(lambda v, w: torch.bmm(rows(v), w.expand(v.shape[0], 4, 2)), 4, 2),
    "addmm": With(lambda v, w: torch.addmm(w[0], v, w), WIDTH, WIDTH),
    "addmm, scaled": With(lambda v, w: torch.addmm(w[0], v, w, beta=2, alpha=3), WIDTH, WIDTH),
    "addmm onto the value": With(lambda v, w: torch.addmm(v, v, w, beta=0.5, alpha=2), WIDTH, WIDTH),
    "baddbmm, scaled": With(
        lambda v, w: torch.baddbmm(w[None, :3], rows(v), w.expand(v.shape[0], 4, 4), beta=0.5, alpha=2), 4, 4
    ),
    "einsum of two": With(lambda v, w: torch.einsum("bi,ij->bj", v, w), WIDTH, 3),
    "einsum of three": With(lambda v, w: torch.einsum("bi,ij,jk->bk", v, w, w), WIDTH, WIDTH),
    "tensordot": With(lambda v, w: torch.tensordot(v, w, dims=1), WIDTH, 3),
    "inner": With(lambda v, w: torch.inner(v, w), 3, WIDTH),
    "mv": With(lambda v, w: torch.mv(v, w)[:, None], WIDTH),
    "cat": lambda v: torch.cat([v[:, :3], v[:, 6:]], -1),
    "cat by keyword": With(lambda v, w: torch.cat([v, w.expand(v.shape[0], 2)], dim=1), 2),
    "concat": lambda v: torch.concat([v[:, 6:], v[:, :3]], 1),
    "hstack": lambda v: torch.hstack([v[:, 6:], v[:, :3]]),
    "stack": lambda v: torch.stack([v, v.flip(1)], 1),
    "view": lambda v: rows(v),
    "reshape": lambda v: v.reshape(v.shape[0], 4, 3).transpose(1, 2).reshape(-1, WIDTH),
    "permute": lambda v: rows(v).permute(0, 2, 1),
    "mT": lambda v: rows(v).mT,
    "swapaxes": lambda v: rows(v).swapaxes(1, 2),
    "swapdims": lambda v: rows(v).swapdims(1, 2),
    "moveaxis": lambda v: image(v).moveaxis(1, 3),
    "movedim": lambda v: image(v).movedim(3, 1),
    "rot90": lambda v: rows(v).rot90(1, (1, 2)),
    "T": lambda v: v.T.T,
    "t": lambda v: v.t().t(),
    "adjoint": lambda v: rows(v).adjoint(),
    "squeeze": lambda v: v.unsqueeze(1).squeeze(1),
    "expand": lambda v: v[:, None].expand(-1, 2, -1),
    "expand as": lambda v: v[:, :1].expand_as(v),
    "repeat": lambda v: v.repeat(1, 2),
    "tile": lambda v: v.tile(1, 2),
    "repeat interleave": lambda v: v.repeat_interleave(2, 1),
    "select": lambda v: v.select(1, 3)[:, None] + v,
    "narrow": lambda v: v.narrow(1, 2, 5),
    "slice": lambda v: v[:, 1::3],
    "index with numbers": lambda v: v[:, [1, 0, 3, 2]],
    "index select": lambda v: v.index_select(1, torch.tensor([1, 0, 3])),
    "gather": lambda v: v.gather(1, _index(v)),
    "chunk": lambda v: torch.cat(v.chunk(2, 1)[::-1], 1),
    "split": lambda v: torch.cat(v.split(4, 1)[::-1], 1),
    "split with sizes": lambda v: torch.cat(v.split([2, 10], 1)[::-1], 1),
    "tensor split": lambda v: torch.cat(torch.tensor_split(v, 2, 1)[::-1], 1),
    "unbind": lambda v: torch.stack(v.unbind(1)[::-1], 1),
    "flip": lambda v: v.flip(1),
    "roll": lambda v: torch.roll(v, shifts=2, dims=1),
    "tril": lambda v: rows(v).tril(),
    "diagonal": lambda v: torch.diagonal(rows(v), dim1=1, dim2=2),
    "diagonal as a matrix": torch.diag_embed,
    "pad": lambda v: F.pad(v, (1, 2)),
    "pad with a number": lambda v: F.pad(v, (1, 0), value=0.3),
    "pad by reflection": lambda v: F.pad(rows(v), (1, 1), mode="reflect"),
    "pad by repetition": lambda v: F.pad(rows(v), (1, 1), mode="replicate"),
    "pad around": lambda v: F.pad(rows(v), (1, 1), mode="circular"),
    "unfold": lambda v: v.unfold(1, 3, 2),
    "scatter": lambda v: torch.zeros_like(v).scatter(1, torch.arange(WIDTH).flip(0).expand(v.shape[0], WIDTH), v),
    "scatter a number": lambda v: v.scatter(1, _index(v)[:, :1], 0.7),
    "scatter add": lambda v: v.scatter_add(1, _index(v), v * 2),
    "index add": lambda v: v.index_add(1, torch.tensor([0, 2]), v[:, 4:6]),
    "set an item": _set_item,
    "set a part": _set_part,
    "put by index": _put,
    "added where rows are numbered": lambda v: v.index_put(
        (torch.arange(v.shape[0])[:, None], torch.tensor([[0, 0]])), v[:, 3:5], accumulate=True
    ),
    "row by row": lambda v: torch.vmap(lambda row: row.flip(0) * 2 + row)(v),
    "select scatter": lambda v: torch.select_scatter(v, v[:, 1], 1, 0),
    "slice scatter": lambda v: torch.slice_scatter(v, v[:, 3:5] * 2, 1, 0, 2),
    "full like": lambda v: torch.full_like(v, 0.3) + v,
    "ones like": lambda v: torch.ones_like(v) * v,
    "new full": lambda v: v.new_full((WIDTH,), 0.3) + v,
    "clone": lambda v: v.clone(),
    "type as": lambda v: v.type_as(v) * 2,
    "batch norm": nn.BatchNorm1d(WIDTH).eval(),
    "dropout": nn.Dropout().eval(),
    "convolution of a signal": _layers(nn.Unflatten(1, (3, 4)), nn.Conv1d(3, 2, 2)),
    "convolution to the same size": _layers(nn.Unflatten(1, (3, 4)), nn.Conv1d(3, 2, 3, padding="same")),
    "convolution of an image": _layers(nn.Unflatten(1, (2, 2, 3)), nn.Conv2d(2, 3, 2, padding=1)),
    "convolution in groups": _layers(nn.Unflatten(1, (2, 2, 3)), nn.Conv2d(2, 4, 2, groups=2)),
    "convolution of a volume": _layers(nn.Unflatten(1, (1, 2, 2, 3)), nn.Conv3d(1, 2, 2)),
    "transposed convolution": _layers(nn.Unflatten(1, (3, 4)), nn.ConvTranspose1d(3, 2, 2)),
    "transposed convolution of an image": _layers(nn.Unflatten(1, (2, 2, 3)), nn.ConvTranspose2d(2, 3, 2, stride=2)),
    "batch norm of an image": _layers(nn.Unflatten(1, (2, 2, 3)), nn.BatchNorm2d(2).eval()),
    "average pool": lambda v: F.avg_pool1d(rows(v), 2, 1, 1),
    "average pool of an image": lambda v: F.avg_pool2d(image(v), 2, 1, 1, count_include_pad=False),
    "adaptive average pool": lambda v: F.adaptive_avg_pool1d(rows(v), 3),
    "adaptive average pool of an image": lambda v: F.adaptive_avg_pool2d(image(v), (1, 2)),
    "global average": lambda v: F.adaptive_avg_pool2d(image(v), 1),
    "nearest upsampling": lambda v: F.interpolate(rows(v), 8),
    "linear upsampling": lambda v: F.interpolate(rows(v), 7, mode="linear"),
    "upsampling of an image": lambda v: F.interpolate(image(v), (3, 5), mode="bilinear"),
    "nearest upsampling of an image": lambda v: F.interpolate(image(v), (4, 6)),
    "pixel shuffle": lambda v: F.pixel_shuffle(v.view(-1, 4, 1, 3), 2),
    "a switch that another value sets": lambda v: torch.where(v[:, :6] > 0, v[:, 6:], -2 * v[:, 6:]),
}
"""What is affine, but for the last, which is between switches."""

GATES: dict[str, Function] = {
    "relu": F.relu,
    "relu, a method": lambda v: v.relu(),
    "relu in place": lambda v: F.relu_(v.clone()),
    "leaky relu": lambda v: F.leaky_relu(v, negative_slope=0.3),
    "leaky relu module": nn.LeakyReLU(0.1),
    "prelu": nn.PReLU(),
    "prelu by channel": nn.PReLU(WIDTH, init=0.4),
    "rrelu": nn.RReLU().eval(),
    "relu6": F.relu6,
    "relu6 module": nn.ReLU6(),
    "hardtanh": lambda v: F.hardtanh(v, min_val=-0.5, max_val=0.2),
    "hardsigmoid": lambda v: F.hardsigmoid(4 * v),
    "softshrink": F.softshrink,
    "softshrink by a keyword": lambda v: F.softshrink(v, lambd=0.2),
    "hardshrink": lambda v: F.hardshrink(v, 0.3),
    "threshold": lambda v: F.threshold(v, threshold=0.1, value=0.5),
    "clamp": lambda v: v.clamp(-0.2, 0.3),
    "clamp from above": lambda v: torch.clamp(v, max=0.3),
    "clamp from below": lambda v: v.clamp(min=-0.1),
    "clip": lambda v: torch.clip(v, -0.1, 0.2),
    "clamp with arrays": With(lambda v, w: torch.clamp(v, min=-w.abs(), max=w.abs() / 2), WIDTH),
    "clamp with values": lambda v: torch.clamp(v, min=-v.flip(1) - 1, max=v.roll(1, 1) + 0.2),
    "clamp max with a value": lambda v: torch.clamp_max(v, 2 * v.flip(1)),
    "clamp min with a number": lambda v: torch.clamp_min(v, 0.1),
    "clamp in place": lambda v: v.clone().clamp_(0),
    "absolute value": lambda v: v.abs(),
    "absolute": torch.absolute,
    "sign": lambda v: v.sign() * 0.3 + v,
    "larger of two": lambda v: torch.max(v, -2 * v),
    "maximum": lambda v: torch.maximum(v, v.flip(1)),
    "maximum of a number": lambda v: torch.maximum(v, torch.full((), 0.1, dtype=v.dtype)),
    "maximum of an array": With(torch.maximum, WIDTH),
    "minimum": lambda v: torch.minimum(v, 0.5 * v),
    "smaller of two, a method": lambda v: v.min(-v),
    "fmax": lambda v: torch.fmax(v, v.flip(1)),
    "fmin": With(torch.fmin, WIDTH),
    "largest of an axis": lambda v: rows(v).max(-1, keepdim=True)[0] + rows(v),
    "largest by keyword": lambda v: torch.max(rows(v), dim=1).values,
    "smallest of an axis": lambda v: rows(v).min(2)[0],
    "amax": lambda v: rows(v).amax(1),
    "amax of two axes": lambda v: torch.amax(rows(v), dim=(1, 2), keepdim=True) + rows(v),
    "amin": lambda v: rows(v).amin(2, keepdim=True),
    "largest, the batch inside": lambda v: rows(v).transpose(0, 1).amax(0),
    "largest of heads, the batch folded": lambda v: v.view(-1, 4).amax(1, keepdim=True).view(-1, 3),
    "where greater": lambda v: torch.where(v > 0.1, v, -2 * v),
    "where less or equal": lambda v: torch.where(torch.le(v, 0), -v, 3 * v),
    "where equal": lambda v: torch.where(v == 0.5, v, 2 * v),
    "masked fill where less": lambda v: v.masked_fill(v < 0, 0.3),
    "a step": lambda v: (v > 0) * v + (v >= 0.2).to(v.dtype),
    "max-pool": lambda v: F.max_pool1d(rows(v), 2, 1, 1),
    "max-pool of an image": lambda v: F.max_pool2d(image(v), 2, stride=1, padding=1),
    "max-pool with places": lambda v: F.max_pool1d(rows(v), 2, return_indices=True)[0],
    "max-pool of an image, dilated": lambda v: F.max_pool2d(v.view(-1, 1, 3, 4), 2, 1, 1, 2, ceil_mode=True),
    "max-pool of a volume": lambda v: F.max_pool3d(v.view(-1, 1, 2, 2, 3), 2, 1),
}

BENDING: dict[str, Function] = {
    "tanh": torch.tanh,
    "tanh in place": lambda v: v.clone().tanh_(),
    "sigmoid": lambda v: v.sigmoid(),
    "expit": torch.special.expit,
    "gelu": F.gelu,
    "gelu by tanh": lambda v: F.gelu(v, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "softplus, sharper": lambda v: F.softplus(v, beta=2, threshold=5),
    "elu": F.elu,
    "selu": F.selu,
    "celu": lambda v: F.celu(v, 0.5),
    "hardswish": lambda v: F.hardswish(4 * v),
    "log sigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "glu": lambda v: F.glu(v, -1),
    "square": torch.square,
    "power": lambda v: v**2,
    "power of one": lambda v: torch.pow(v, 1),
    "exp": torch.exp,
    "log": lambda v: torch.log(v.abs() + 1),
    "sqrt": lambda v: (v.abs() + 1).sqrt(),
    "rsqrt": lambda v: (v.abs() + 1).rsqrt(),
    "reciprocal": lambda v: 2 / (v.abs() + 1),
    "sin": torch.sin,
    "erf": torch.erf,
    "product of halves": lambda v: v[:, :6] * v[:, 6:],
    "product with itself": lambda v: v * v,
    "quotient": lambda v: v[:, :6] / (v[:, 6:].abs() + 1),
    "rounding division": lambda v: torch.div(v, 0.5, rounding_mode="floor"),
    "remainder": lambda v: v % 0.5,
    "floor": torch.floor,
    "round": lambda v: (4 * v).round(),
    "cumprod": lambda v: v.cumprod(-1),
    "cummax": lambda v: v.cummax(-1)[0],
    "logcumsumexp": lambda v: v.logcumsumexp(-1),
    "sort": lambda v: v.sort(-1)[0],
    "topk": lambda v: v.topk(3, -1)[0],
    "median": lambda v: rows(v).median(-1, keepdim=True)[0] + rows(v),
    "looked up by row and place": lambda v: v[torch.arange(v.shape[0]), v.argmax(1)][:, None] + v,
    "looked up in one list of all rows": lambda v: v.flatten()[torch.arange(v.shape[0]) * WIDTH + v.argmax(1)][:, None],
    "embedding bag": lambda v: F.embedding_bag(
        (v > 0).long(), torch.tensor([[0.5, 1.0], [-1.0, 2.0]]).to(v.dtype), mode="sum"
    ),
    "a filter for each row": lambda v: F.conv1d(v.view(1, -1, WIDTH), v[:, None, :3] * 0.5, groups=v.shape[0]).view(
        -1, WIDTH - 2
    ),
    "argmax": lambda v: F.one_hot(v.argmax(-1), WIDTH).to(v.dtype),
    "prod": lambda v: rows(v).prod(1),
    "std": lambda v: rows(v).std(1),
    "var": lambda v: rows(v).var(1, unbiased=False),
    "norm": lambda v: torch.linalg.vector_norm(rows(v), dim=-1),
    "normalize": lambda v: F.normalize(v, dim=-1),
    "logsumexp": lambda v: rows(v).logsumexp(1),
    "softmax": lambda v: v.softmax(-1),
    "softmax by keyword": lambda v: torch.softmax(rows(v), dim=1),
    "softmax over the last of three axes": lambda v: rows(v).softmax(-1),
    "softmax of four axes": lambda v: image(v).softmax(1),
    "softmin": lambda v: F.softmin(rows(v), 2),
    "log softmax": lambda v: F.log_softmax(rows(v), dim=1),
    "layer norm": nn.LayerNorm(WIDTH),
    "layer norm of rows": lambda v: F.layer_norm(rows(v), (4,)),
    "rms norm": nn.RMSNorm(WIDTH),
    "group norm": nn.GroupNorm(3, WIDTH),
    "two values multiplied": lambda v: torch.bmm(rows(v), rows(v).mT),
    "einsum of a value with itself": lambda v: torch.einsum("bi,bj->bij", v[:, :3], v[:, 3:6]),
    "vecdot": lambda v: torch.linalg.vecdot(rows(v), rows(v).flip(1)),
    "a square on one side": lambda v: torch.where(v > 0, v, v * v),
    "detached": lambda v: v.detach() + v.flip(1),
    "to whole numbers": lambda v: (3 * v).long().to(v.dtype),
    "embedding": lambda v: F.embedding((v > 0).long(), torch.tensor([[0.5, 1.0], [-1.0, 2.0]]).to(v.dtype)),
    "fmod": lambda v: torch.fmod(v, 0.5),
    "atan2": With(torch.atan2, WIDTH),
    "hypot": With(torch.hypot, WIDTH),
    "nan to num": torch.nan_to_num,
    "is nan": lambda v: torch.isnan(v).to(v.dtype) + v,
    "logical": lambda v: ((v > 0) & (v < 0.5)).to(v.dtype) + v,
    "any": lambda v: (rows(v) > 0).any(-1).to(v.dtype),
    "adaptive max-pool": lambda v: F.adaptive_max_pool1d(rows(v), 2),
    "adaptive max-pool of an image": lambda v: F.adaptive_max_pool2d(image(v), (1, 2)),
    "bucketize": lambda v: torch.bucketize(v, torch.tensor([-0.5, 0.0, 0.5]).to(v.dtype)).to(v.dtype),
    "softmax beside a mask": lambda v: v.masked_fill(torch.arange(WIDTH) > 9, -1e9).softmax(-1),
    "masked fill where not a number": lambda v: v.masked_fill(torch.isnan(v), 0.0),
    "local response norm": lambda v: F.local_response_norm(rows(v), 2),
    "cosine similarity": lambda v: F.cosine_similarity(rows(v)[:, :1], rows(v), dim=2),
}
"""What bends, or of which it is not known that it does not."""


class Heads(nn.Module):
    """Two heads on three rows of four numbers, written in one of several ways.

    Args:
        mix: From queries, keys and values `[batch head entity d_head]` to the heads' outputs, likewise.
        project: How the four maps are written: `linear`, `addmm` or `matmul`.
    """

    def __init__(self, mix: Callable[[Tensor, Tensor, Tensor], Tensor], *, project: str = "linear") -> None:
        super().__init__()
        torch.manual_seed(4)
        self.mix, self.project = mix, project
        self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(4))

    def _through(self, layer: nn.Linear, x: Tensor) -> Tensor:
        if self.project == "linear":
            return layer(x)
        if self.project == "matmul":
            return x @ layer.weight.T
        flat = torch.addmm(layer.bias, x.reshape(-1, 4), layer.weight.T, beta=1, alpha=self.alpha)
        return flat.view(x.shape)

    alpha = 1

    def forward(self, v: Tensor) -> Tensor:
        x = rows(v)
        q, k, v = (self._through(layer, x).view(-1, 3, 2, 2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self._through(self.out, self.mix(q, k, v).transpose(1, 2).reshape(-1, 3, 4))


class Scaled(Heads):
    """The same with layers whose product is scaled."""

    alpha = 2


class MultiHead(nn.Module):
    """`nn.MultiheadAttention` on three rows of four numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, v: Tensor) -> Tensor:
        return self.attention(rows(v), rows(v), rows(v))[0]


def _by_matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / 2**0.5).softmax(-1) @ v


def _by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * 0.7
    return torch.einsum("bhqk,bhkd->bhqd", torch.softmax(scores, dim=-1), v)


def _by_bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (value.reshape(-1, 3, 2) for value in (q, k, v))
    return torch.bmm(torch.bmm(q, k.mT).div(2**0.5).softmax(2), v).view(-1, 2, 3, 2)


def _by_baddbmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (value.reshape(-1, 3, 2) for value in (q, k, v))
    scores = torch.baddbmm(torch.zeros(1, 1, 1, dtype=q.dtype), q, k.mT, beta=0, alpha=0.7)
    return torch.bmm(scores.softmax(-1), v).view(-1, 2, 3, 2)


def _masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    hidden = (torch.arange(3) == 2) & (torch.arange(3)[:, None] < 2)
    return (q @ k.mT).masked_fill(hidden, -1e9).softmax(-1) @ v


ATTENTION: dict[str, Function] = {
    "attention by matmul": Heads(_by_matmul),
    "attention by einsum": Heads(_by_einsum),
    "attention by bmm": Heads(_by_bmm),
    "attention by baddbmm": Heads(_by_baddbmm),
    "attention with a mask": Heads(_masked),
    "attention without biases": Heads(_by_matmul, project="matmul"),
    "attention by addmm": Heads(_by_matmul, project="addmm"),
    "attention by a scaled addmm": Scaled(_by_matmul, project="addmm"),
    "fused": Heads(F.scaled_dot_product_attention),
    "fused and causal": Heads(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
    "fused with a scale": Heads(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3)),
    "fused with a mask": Heads(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(3, 3, dtype=torch.bool).tril())
    ),
    "fused with a bias": Heads(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.arange(9.0).view(3, 3).to(q.dtype))
    ),
    "fused in groups": Heads(lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True)),
    "multi-head module": MultiHead(),
}


class Around(nn.Module):
    """A function between two linear layers; with a value head, the value reads one number behind the function.

    The function is a copy, so that a policy in double precision leaves the other policies of its case as they are.
    """

    def __init__(self, function: Function, *, valued: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.function, self.valued = nn.Linear(4, WIDTH), copy.deepcopy(function), valued
        self.last = nn.Linear(function(torch.ones(2, WIDTH)).flatten(1).shape[1], 3)

    def rest(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and value, from what the first layer puts out."""
        made = self.function(h).flatten(1)
        return self.last(made), made[:, made.shape[1] // 2 :][:, :1] * 0.5

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        scores, value = self.rest(self.first(x))
        return (scores, value) if self.valued else scores
