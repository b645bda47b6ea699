"""Dictionaries scored by what the policy then does, beside principal and independent components and neurons.

    explained = 1 - sum |value - reconstruction|^2 / sum |value - mean|^2
    agreement = share of decisions that stay with the reconstruction in the value's place

All on episodes that fitted nothing, at the same number of active units; driven on seeds of their own. A dictionary is
worth its width where it keeps more decisions than the best of the others, and finds the same directions again from
another beginning. Cost: a fit for each kind and beginning, a few passes over the states, and the episodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import scipy.optimize
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.core.many_rows import parts_of, scores_of, values_at
from rlmech.core.masked import open_actions
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.provenance import provenance
from rlmech.core.site import Site
from rlmech.episodes import compare_rollouts
from rlmech.episodes.recording import Recording
from rlmech.errors import ConfigError
from rlmech.features.dictionary import Dictionary, Kind, LearnedKind, Splice
from rlmech.features.fitting import fit_dictionary
from rlmech.features.rows import States, states_of
from rlmech.features.splicing import splice_hooks
from rlmech.metrics import policy_kl
from rlmech.metrics.measure import Outputs, bind
from rlmech.patching.sites import site_coordinates
from rlmech.patching.sweeps.independence import refuse_train_mode
from rlmech.results import storable
from rlmech.statistics import bootstrap_mean
from rlmech.untyped import JsonObject, Variables

BASES: tuple[Kind, ...] = ("pca", "ica", "neurons")
"""What a learned dictionary is compared with."""
NOTHING = "nothing"
"""The value's mean in the value's place: the floor."""
STABLE = 0.7
"""Mean cosine of matched directions of two fits from which on they are called the same."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DictionaryScores:
    """Dictionaries of one site, and what the policy does with each in the value's place.

    Attributes:
        dictionaries: By kind, those of the first beginning.
        result: See `compare_dictionaries`.
        driven: What `compare_rollouts` says of each as a condition; None where no environment was given.
        says: By learned kind, whether it is worth it.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> found = rlm.features.compare_dictionaries(
        ...     policy, torch.randn(200, 4), site="hook_obs", n_features=8, k=2, n_steps=20, n_fits=2
        ... )
        >>> list(found.dictionaries)
        ['topk', 'pca', 'ica', 'neurons', 'nothing']
    """

    dictionaries: Mapping[str, Dictionary]
    result: xr.Dataset = field(repr=False)
    driven: xr.Dataset | None = field(repr=False)
    says: Mapping[str, str]


@explain_misuse
def compare_dictionaries(
    policy: HookedPolicy,
    states: Recording | Observation,
    *,
    site: Site | str,
    kinds: Sequence[LearnedKind] = ("topk",),
    env: gym.Env | None = None,
    seeds: Iterable[int] = (),
    n_fits: int = 3,
    temperature: float | None = None,
    clusters: Any = None,
    seed: int = 0,
    **options: Any,
) -> DictionaryScores:
    """Fit dictionaries and score them by what the policy does with their reconstruction in the value's place.

    Args:
        policy: A policy of discrete actions.
        states: A recording of it, or observations; a quarter of the episodes fit nothing and score.
        site: Where.
        kinds: Kinds of learned dictionaries; `pca`, `ica` and `neurons` stand beside them with the same k.
        env: An environment to drive in with each reconstruction; None for no driving.
        seeds: Seeds of these episodes; not those of the recording.
        n_fits: Fits of each kind from different beginnings, at least two: whether they agree is part of the score.
        temperature: Of the policy whose divergence is taken; None for 1 of logits, and for the spread of the scores
            over the states of Q-values.
        clusters: A label for each state, say its episode, where observations are given.
        seed: Of fits, split and bootstrap.
        **options: Those of `fit_dictionary`: n_features, k, over, into, n_steps.

    Returns:
        `result` with dimension `dictionary` (the kinds, `pca`, `ica`, `neurons`, and `nothing`, the mean value):
        `explained`; `n_active` (mean number of active units); `dead` (share of features that are never active);
        `stability`, the mean cosine of matched directions between fits; `agreement[dictionary, splice]` and
        `kl[dictionary, splice]` (nats) for `reconstruction`, `with_error` (which must be 1 and 0) and `error_only`,
        each with `_low`, `_high` (95 %, over episodes); `kept`, 1 - kl / kl of nothing;
        `advantage`, agreement less that of the best of `pca`, `ica` and `neurons`, with interval;
        `agreement_by_fit[dictionary, fit]`. Of a transcoder the others see what it has to predict.

    Raises:
        ConfigError: Continuous actions, several choices, one episode only, seeds without an environment, and as
            `fit_dictionary`.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> found = rlm.features.compare_dictionaries(
        ...     policy, torch.randn(200, 4), site="hook_obs", n_features=8, k=2, n_steps=20, n_fits=2
        ... )
        >>> float(found.result["agreement"].sel(dictionary="topk", splice="with_error"))
        1.0
    """
    seeds = list(seeds)
    _check(policy, kinds, n_fits, env, seeds)
    known = states_of(policy, states, clusters)
    fitting, testing = _split(known.episode, seed)
    given: JsonObject = {"site": site, **options}
    fits: dict[str, list[Dictionary]] = {}
    on = known.rows(fitting)
    for kind in kinds:
        fits[kind] = [fit_dictionary(policy, on, kind=kind, seed=seed + n, **given) for n in range(n_fits)]
    first = fits[kinds[0]][0]
    base: JsonObject = {"k": min(first.k, first.decoder.shape[1]), "over": first.layout.over}
    base["site"] = first.site if first.into is None else first.into.site
    for kind in BASES:
        again = range(n_fits if kind == "ica" else 1)
        fits[kind] = [fit_dictionary(policy, on, kind=kind, seed=seed + n, **base) for n in again]
    fits[NOTHING] = [_nothing(fits["neurons"][0])]
    asked = States(obs=known.rows(testing), episode=known.episode[testing], recorded=known.recorded)
    scored = _Scoring.of(policy, asked, temperature)
    rows = {name: {how: scored.rows(own[0], how) for how in get_args(Splice)} for name, own in fits.items()}
    by_fit = {name: [float(scored.rows(one, "reconstruction")[0].mean()) for one in own] for name, own in fits.items()}
    codes = {name: [scored.codes(one) for one in own] for name, own in fits.items()}
    result = _dataset(scored, fits, rows, by_fit, codes, seed=seed)
    says = {kind: _words(result.sel(dictionary=kind)) for kind in kinds}
    driven = None
    if env is not None:
        conditions = {name: splice_hooks(own[0]) for name, own in fits.items()}
        driven = compare_rollouts(policy, env, conditions=conditions, seeds=seeds, seed=seed, progress=False)
    where = {name: values[0] for name, (_, values) in site_coordinates(policy, [first.site]).items()}
    told = {"says": says, "temperature": scored.temperature, "n_fitted": len(fitting), "n_tested": len(testing)}
    told |= {"k": first.k, "seed": seed, "method": "dictionaries spliced in"}
    result = storable(result.assign_coords(where), provenance(policy) | told)
    return DictionaryScores(
        dictionaries={name: own[0] for name, own in fits.items()}, result=result, driven=driven, says=says
    )


def _nothing(like: Dictionary) -> Dictionary:
    """A dictionary that explains nothing: the mean in the value's place."""
    none = torch.zeros(1, like.encoder.shape[1])
    return Dictionary(layout=like.layout, kind="neurons", k=1, encoder=none, bias=torch.zeros(1), decoder=none,
                      mean=like.mean, offset=like.offset, n_fitted=like.n_fitted, seed=0)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scoring:
    """The states that score, and what the policy does there by itself."""

    policy: HookedPolicy
    states: States
    base: Tensor
    temperature: float

    @classmethod
    def of(cls, policy: HookedPolicy, states: States, temperature: float | None) -> _Scoring:
        base = scores_of(policy, states.obs)
        if temperature is None:
            temperature = 1.0 if policy.output_kind == "logits" else spread_of(base)
        return cls(policy=policy, states=states, base=base, temperature=float(temperature))

    def rows(self, dictionary: Dictionary, how: Splice) -> Float[np.ndarray, "measure state"]:
        """Whether each decision stays, and how far the policy moves."""
        with torch.no_grad(), self.policy.hooks(fwd_hooks=splice_hooks(dictionary, how)):
            new = torch.cat([self.policy(self.states.rows(part)) for part in parts_of(len(self.states))])
        moved = bind(policy_kl(self.temperature), self.policy, clean=Outputs(scores=self.base))(new)
        same = (new.argmax(-1) == self.base.argmax(-1)).double()
        return torch.stack([same, moved.double().clamp(min=0)]).cpu().numpy()

    def codes(self, dictionary: Dictionary) -> tuple[Tensor, float]:
        """Which features are active in which vectors, and the share of the variance that they explain."""
        x = dictionary.layout.vectors(values_at(self.policy, self.states.obs, dictionary.site)).float()
        into = dictionary.into
        y = x if into is None else into.vectors(values_at(self.policy, self.states.obs, into.site)).float()
        codes = dictionary.encode(x)
        error, total = (y - dictionary.decode(codes)).square().sum(), (y - y.mean(0)).square().sum()
        return codes != 0, float(1 - error / total) if float(total) > 0 else float("nan")


def spread_of(scores: Tensor) -> float:
    """How far the scores of a state's open actions lie apart, root mean square over states."""
    shown = open_actions(scores)
    count = shown.sum(1, keepdim=True)
    centred = scores.masked_fill(~shown, 0)
    centred = (centred - centred.sum(1, keepdim=True) / count).masked_fill(~shown, 0)
    return float((centred.square().sum() / shown.sum()).sqrt()) or 1.0


def matched(a: Dictionary, b: Dictionary, used_a: Tensor, used_b: Tensor) -> float:
    """Mean cosine between the used directions of two fits, one matched with one; of a basis without signs."""
    first, second = (one.decoder[used] for one, used in ((a, used_a), (b, used_b)))
    if not len(first) or not len(second):
        return float("nan")
    unit = [part / part.norm(dim=1, keepdim=True).clamp(min=1e-12) for part in (first, second)]
    cosine = unit[0] @ unit[1].T
    cosine = (cosine if a.is_learned else cosine.abs()).numpy()
    place, other = scipy.optimize.linear_sum_assignment(-cosine)
    return float(cosine[place, other].sum() / max(len(first), len(second)))


def _stability(fits: Sequence[Dictionary], active: Sequence[Tensor]) -> float:
    if len(fits) == 1:
        return 1.0 if fits[0].kind in ("pca", "neurons") and bool(fits[0].decoder.any()) else float("nan")
    used = [one.any(0) for one in active]
    pairs = [(i, j) for i in range(len(fits)) for j in range(i)]
    return float(np.mean([matched(fits[i], fits[j], used[i], used[j]) for i, j in pairs]))


def _split(episode: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.random.default_rng(seed).permutation(np.unique(episode))
    if len(labels) < 2:
        raise ConfigError(
            "A dictionary is scored on episodes that it was not fitted on.",
            given="states of one episode",
            expected="2 episodes or more, 16 for an interval",
            fix="record more episodes",
        )
    held = np.isin(episode, labels[: max(1, len(labels) // 4)])
    return np.flatnonzero(~held), np.flatnonzero(held)


def _dataset(
    scored: _Scoring,
    fits: Mapping[str, Sequence[Dictionary]],
    rows: Mapping[str, Mapping[str, np.ndarray]],
    by_fit: Mapping[str, Sequence[float]],
    codes: Mapping[str, Sequence[tuple[Tensor, float]]],
    *,
    seed: int,
) -> xr.Dataset:
    names, splices = list(fits), list(get_args(Splice))
    stacked = np.stack([[rows[name][how] for how in splices] for name in names])  # dictionary splice measure state
    episode = scored.states.episode
    data: Variables = {}
    ends = ("", "_low", "_high")
    for place, (name, unit) in enumerate((("agreement", "fraction"), ("kl", "nat"))):
        values = stacked[:, :, place].reshape(-1, stacked.shape[-1])
        found = bootstrap_mean(values, clusters=episode, seed=seed, shares="shares" if place == 0 else None)
        for end, part in zip(ends, (found.estimate, found.low, found.high), strict=True):
            data[name + end] = (("dictionary", "splice"), part.reshape(len(names), -1), {"units": unit})
    same, kl = stacked[:, 0, 0], stacked[:, 0, 1].mean(1)
    best = max(BASES, key=lambda name: same[names.index(name)].mean())
    less = bootstrap_mean(same - same[names.index(best)], clusters=episode, seed=seed, shares="differences")
    for end, part in zip(ends, (less.estimate, less.low, less.high), strict=True):
        data["advantage" + end] = ("dictionary", part, {"units": "fraction"})
    floor = kl[names.index(NOTHING)]
    active = {name: [one for one, _ in own] for name, own in codes.items()}
    data |= {
        "explained": ("dictionary", [codes[name][0][1] for name in names], {"units": "1"}),
        "kept": ("dictionary", 1 - kl / floor if floor > 0 else np.full(len(names), np.nan), {"units": "1"}),
        "n_active": ("dictionary", [float(active[name][0].sum(1).double().mean()) for name in names]),
        "dead": ("dictionary", [float((~active[name][0].any(0)).double().mean()) for name in names]),
        "n_features": ("dictionary", [len(fits[name][0]) for name in names]),
        "stability": ("dictionary", [_stability(fits[name], active[name]) for name in names], {"units": "1"}),
    }
    widest = max(map(len, by_fit.values()))
    padded = [[*by_fit[name], *[np.nan] * (widest - len(by_fit[name]))] for name in names]
    data["agreement_by_fit"] = (("dictionary", "fit"), padded, {"units": "fraction"})
    coords = {"dictionary": names, "splice": splices, "fit": np.arange(widest)}
    return xr.Dataset(data, coords=coords, attrs={"best_base": best})


def _words(one: xr.Dataset) -> str:
    """Whether a dictionary is worth its width."""
    low, value = float(one["advantage_low"]), float(one["advantage"])
    if not np.isfinite(low):
        return "too few episodes for an interval"
    stability = float(one["stability"])
    unstable = f"; {1 - stability:.0%} of a direction is chance" if stability < STABLE else ""
    if low > 0:
        return f"keeps {value:.1%} more decisions than {one.attrs['best_base']}{unstable}"
    if value > 0:
        interval = f"[{low:+.1%}, {float(one['advantage_high']):+.1%}]"
        return f"not shown to be worth it: {value:+.1%} {interval} decisions beside {one.attrs['best_base']}{unstable}"
    return f"not worth it: {one.attrs['best_base']} keeps as many decisions with as many active units{unstable}"


def _check(policy: HookedPolicy, kinds: Sequence[str], n_fits: int, env: gym.Env | None, seeds: Sequence[int]) -> None:
    learned = get_args(LearnedKind)
    problems = [
        (
            policy.output_kind == "mean_action" or policy.choices is not None,
            "Dictionaries are scored by which action is done.",
            "continuous actions" if policy.output_kind == "mean_action" else "several choices",
            "discrete actions, one choice",
            "policy.choice(name) is one of several choices alone; fit_dictionary and drive_features take any policy",
        ),
        (
            not kinds or not set(kinds) <= set(learned),
            "Kinds are those of learned dictionaries; the others stand beside them anyway.",
            f"kinds={list(kinds)}",
            f"some of {', '.join(learned)}",
            "kinds=['topk']",
        ),
        (
            n_fits < 2,
            "Stability is told by fits from different beginnings.",
            f"n_fits={n_fits}",
            "2 or more",
            "n_fits=3",
        ),
        (
            (env is None) != (not seeds),
            "Driving takes an environment and seeds.",
            f"env={'given' if env is not None else None}, {len(seeds)} seeds",
            "both or neither",
            "env=rlm.make_env(policy.spec), seeds=range(1000, 1200)",
        ),
    ]
    for wrong, message, given, expected, fix in problems:
        if wrong:
            raise ConfigError(message, given=given, expected=expected, fix=fix)
    refuse_train_mode(policy)
