"""The action lens: what the policy would choose if it stopped at each layer.

    mean:    scores_L(x) = mean score + J_L (a_L(x) - mean a_L),      J_L = mean over the reference of d score / d a_L
    linear:  scores_L(x) = B_L a_L(x) + b_L,                          fitted to the scores by ridge regression

`mean` keeps the layer's value and replaces all that comes after, and all that leads past it, by its mean over the
reference: the rest of the network by the mean of the affine maps that it is there. `linear` asks what the layer holds,
`mean` what the policy would make of it; neither is a transposed weight. Cost: `mean` a gradient for each layer, action
and reference row; `linear` a least-squares problem for each layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float

from rlmech.arguments import explain_misuse
from rlmech.attribution.direct import ROWS_AT_ONCE, behind, flat, slopes_behind
from rlmech.attribution.readouts import made_by, readouts
from rlmech.circuits.labels import score_units
from rlmech.core.cache import ActivationCache
from rlmech.core.masked import is_masked
from rlmech.core.names import Names
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.errors import CacheError, ConfigError, ObservationError, SiteError
from rlmech.results import storable

Lens = Literal["mean", "linear"]
_LAYERS = ("observation", "linear", "convolution", "activation", "norm", "pool", "z", "attn_out", "layer", "recurrent")
_Rows = Float[np.ndarray, "batch number"]
_Scores = Float[np.ndarray, "batch action"]


@explain_misuse
def action_lens(
    policy: HookedPolicy,
    obs: Observation,
    names: Names = None,
    *,
    reference: Observation | ActivationCache,
    method: Lens = "mean",
    ridge: float = 1e-6,
    held_out: float = 0.25,
    seed: int = 0,
) -> xr.Dataset:
    """Read action scores off every layer, and compare what they would choose with what the policy chooses.

    Args:
        policy: The policy; for `mean`, piecewise linear behind the layers but for its attention.
        obs: A batch of observations.
        names: Hook points, as in `run_with_cache`; None for all layers with a way to the scores.
        reference: The policy's own states, over which the means or the regression are taken: observations, or a cache
            of them that holds `hook_obs`.
        method: `mean` or `linear`, as above.
        ridge: For `linear`: the penalty, as a share of the layer's mean variance.
        held_out: Share of the reference that the fit does not see.
        seed: Of the split.

    Returns:
        With dimension `site` and its coordinate `hook`: `scores[site, batch, action]` in the unit of the scores,
        `choice[site, batch]`, the number of the best action, `agreement[site]`, the share of `obs` where it is the
        policy's, `r2[site]`, the share of the scores' variance over the held-out reference that the lens explains (can
        be negative); and `policy_scores[batch, action]`. Both methods are fitted on the rest of the reference, so the
        held-out rows are new to them. Masked scores (-inf, -1e8) are left out of fits and of `r2`, and where the policy
        masks an action of `obs`, so does every lens. The last layer's `mean` lens is the policy itself, where its head
        is linear.

    Raises:
        SiteError: No such point, or for `mean` one without a direct way to the scores.
        EngineError: The policy runs on the eager engine, or for `mean` something behind a layer bends.
        ObservationError: A reference of fewer than four rows.
        ConfigError: No such method, or a share outside 0 to 1.

    Source:
        Belrose et al. 2023, *Eliciting Latent Predictions from Transformers with the Tuned Lens*, arXiv 2303.08112, for
        `linear`; its section 2 says what is wrong with reading layers through the last weights as they are.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.attribution.lens import action_lens
        >>> policy = rlm.load("zoo:intersection-ego-attention")
        >>> lens = action_lens(policy, torch.rand(5, 15, 7), "q_net.*.hook_out", reference=torch.rand(40, 15, 7))
        >>> float(lens.agreement[-1].round(3))  # the head
        1.0
    """
    policy = policy.fitting(obs)
    _check(method, ridge, held_out)
    chosen = _layers(policy, names, method)
    rows = readouts(policy, better=None, worse=None)
    reference = observed(reference)
    arrays = policy.coerce(reference)
    fitted, kept_out = _split(len(arrays[0]), held_out, seed)
    _, here = policy.run_with_cache(obs, names=chosen)
    scores, there = policy.run_with_cache(reference, names=chosen)
    truth, own_scores = flat(scores), policy(obs)
    own, shown, masked = flat(own_scores), ~is_masked(scores).cpu().numpy(), is_masked(own_scores).cpu().numpy()
    found: list[np.ndarray] = []
    r2: list[float] = []
    for name in chosen:
        known = flat(there[name])
        if method == "mean":
            part = tuple(value[torch.as_tensor(fitted, device=value.device)] for value in arrays)
            lens = _mean_lens(policy, name, part, known[fitted], truth[fitted], shown[fitted])
        else:
            lens = _linear_lens(known[fitted], truth[fitted], shown[fitted], ridge)
        found.append(np.where(masked, own, lens(flat(here[name]))))
        r2.append(_explained(lens(known[kept_out]), truth[kept_out], shown[kept_out]))
    return _result(policy, chosen, np.stack(found), np.array(r2), own, rows.names, method, fitted, kept_out, seed)


def observed(reference: Observation | ActivationCache) -> Observation:
    """The observations of a reference, which a cache holds too.

    Raises:
        CacheError: The cache does not hold them.
    """
    if not isinstance(reference, ActivationCache):
        return reference
    raw = [name for name in reference if name.startswith("hook_obs_raw")]  # before a VecNormalize's statistics
    names = raw or [name for name in reference if name.startswith("hook_obs")]
    if not names:
        raise CacheError(
            "This cache does not hold the observations that it is of.",
            given=f"a cache of {', '.join(list(reference)[:3])}...",
            expected="one that holds hook_obs",
            fix='policy.run_with_cache(obs)[1], or run_with_cache(obs, [..., "hook_obs*"])',
        )
    if names == [names[0]] and "." not in names[0]:
        return reference[names[0]].detach()
    return {name.partition(".")[2]: reference[name].detach() for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Affine:
    """A lens: an affine map from a layer to the scores."""

    slope: np.ndarray
    offset: np.ndarray

    def __call__(self, values: _Rows) -> _Scores:
        return values @ self.slope + self.offset


def _mean_lens(
    policy: HookedPolicy,
    name: str,
    arrays: Sequence[torch.Tensor],
    values: _Rows,
    scores: _Scores,
    shown: Bool[np.ndarray, "batch action"],
) -> _Affine:
    """Means over the rows in which an action is not masked."""
    frozen, rows = behind(policy, name), readouts(policy, better=None, worse=None)
    slope = np.zeros((values.shape[1], scores.shape[1]))
    share = shown / np.maximum(shown.sum(0), 1)
    for start in range(0, len(values), ROWS_AT_ONCE):
        part = tuple(value[start : start + ROWS_AT_ONCE] for value in arrays)
        _, slopes, _ = slopes_behind(frozen, name, part, rows)
        own = slopes.flatten(2).double().cpu().numpy()
        slope += np.einsum("ban,ba->na", own, share[start : start + ROWS_AT_ONCE])
    centre, mean = share.T @ values, (np.where(shown, scores, 0) * share).sum(0)
    return _Affine(slope=slope, offset=mean - (centre * slope.T).sum(1))


def _linear_lens(values: _Rows, scores: _Scores, shown: Bool[np.ndarray, "batch action"], ridge: float) -> _Affine:
    """Ridge regression, each action's on the rows in which it is not masked."""
    if shown.all():
        return _ridge(values, scores, ridge)
    columns = [_ridge(values[rows], scores[rows, a, None], ridge) for a, rows in enumerate(shown.T)]
    return _Affine(
        slope=np.concatenate([column.slope for column in columns], 1),
        offset=np.concatenate([column.offset for column in columns]),
    )


def _ridge(values: _Rows, scores: _Scores, ridge: float) -> _Affine:
    """Through the smaller of the two Gram matrices; zero where there is no row."""
    if not len(values):
        return _Affine(slope=np.zeros((values.shape[1], scores.shape[1])), offset=np.zeros(scores.shape[1]))
    centre, offset = values.mean(0), scores.mean(0)
    x, y = values - centre, scores - offset
    penalty = ridge * float((x**2).sum()) / max(1, x.shape[1])
    if x.shape[1] <= len(x):  # least squares throughout: a layer may be constant, or its numbers depend on each other
        slope = np.linalg.lstsq(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)[0]
    else:
        slope = x.T @ np.linalg.lstsq(x @ x.T + penalty * np.eye(len(x)), y)[0]
    return _Affine(slope=slope, offset=offset - centre @ slope)


def _explained(found: _Scores, truth: _Scores, shown: Bool[np.ndarray, "batch action"]) -> float:
    """The share of the variance of the scores that are not masked."""
    truth = np.where(shown, truth, 0)
    mean = truth.sum(0) / np.maximum(shown.sum(0), 1)
    spread = (np.where(shown, truth - mean, 0) ** 2).sum()
    missed = (np.where(shown, found - truth, 0) ** 2).sum()
    return float(1 - missed / spread) if spread > 0 else float("nan")


def _split(n: int, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if n < 4:
        raise ObservationError(
            "The reference is too small to fit a lens and to try it on what it has not seen.",
            given=f"{n} rows",
            expected="at least 4, better some hundreds of the policy's own states",
            fix="record some episodes and give their observations",
        )
    order = np.random.default_rng(seed).permutation(n)
    n_out = min(max(2, round(held_out * n)), n - 2)
    return np.sort(order[n_out:]), np.sort(order[:n_out])


def _layers(policy: HookedPolicy, names: Names, method: Lens) -> list[str]:
    chosen: list[str] = []
    for site in policy.sites(names):
        point = policy.hook_dict[site.name]
        if names is None and point.kind not in _LAYERS:
            continue
        if method == "mean":
            try:
                behind(policy, site.name)
            except SiteError:
                if site.name == names or (isinstance(names, Sequence) and site.name in names):
                    raise
                continue  # None, or a pattern of names, takes in what has no way to the scores
        chosen.append(site.name)
    return chosen


def _check(method: str, ridge: float, held_out: float) -> None:
    if method not in ("mean", "linear"):
        raise ConfigError(
            f"There is no lens {method!r}.", given=repr(method), expected="'mean' or 'linear'", fix="method='mean'"
        )
    if ridge < 0 or not 0 < held_out < 1:
        raise ConfigError(
            "The regression's settings make no sense.",
            given=f"ridge={ridge}, held_out={held_out}",
            expected="ridge of 0 or more, held_out between 0 and 1",
            fix="leave them out: ridge=1e-6, held_out=0.25",
        )


def _result(
    policy: HookedPolicy,
    chosen: Sequence[str],
    scores: np.ndarray,
    r2: np.ndarray,
    own: np.ndarray,
    actions: Sequence[str | int],
    method: Lens,
    fitted: np.ndarray,
    kept_out: np.ndarray,
    seed: int,
) -> xr.Dataset:
    unit = {"units": score_units(policy)}
    choice = scores.argmax(-1)
    data = {
        "scores": (("site", "batch", "action"), scores, unit),
        "choice": (("site", "batch"), choice),
        "agreement": ("site", (choice == own.argmax(-1)).mean(1), {"units": "1"}),
        "r2": ("site", r2, {"units": "1"}),
        "policy_scores": (("batch", "action"), own, unit),
    }
    coords = {"site": np.arange(len(chosen)), "hook": ("site", list(chosen)), "action": list(actions)}
    attrs = made_by(policy, "action_lens", lens=method, n_fitted=len(fitted), n_held_out=len(kept_out), seed=seed)
    return storable(xr.Dataset(data, coords=coords), attrs)
