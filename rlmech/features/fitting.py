"""Fitting dictionaries to what stands at a site in some states."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.core.many_rows import values_at
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.episodes.recording import Recording
from rlmech.errors import ConfigError, MissingPackageError
from rlmech.features.dictionary import Dictionary, Kind
from rlmech.features.layout import VectorLayout
from rlmech.features.rows import states_of
from rlmech.features.training import train
from rlmech.patching.sites import choose_sites
from rlmech.untyped import JsonObject

FEWEST_ROWS = 2
_LEAST_SHARE = 1e-4
"""Of the largest standard deviation along a direction, what a direction must vary by to have components of its own."""


@explain_misuse
def fit_dictionary(
    policy: HookedPolicy,
    states: Recording | Observation,
    *,
    site: Site | str,
    into: Site | str | None = None,
    kind: Kind = "topk",
    n_features: int | None = None,
    k: int = 8,
    over: str | Sequence[str] = (),
    n_steps: int = 3000,
    seed: int = 0,
) -> Dictionary:
    """Learn directions of which few at a time make up what stands at a site.

    Args:
        policy: The policy.
        states: A recording of it, or observations.
        site: Where; the whole value of a state is one vector, unless `over` says otherwise.
        into: Of a transcoder, the site that is predicted; None for the site itself.
        kind: `topk`, `batch_topk` or `jump_relu`, which are learned; `pca`, `ica` (scikit-learn) or `neurons`, of which
            the k largest parts of a vector are kept.
        n_features: Directions; None for eight times the site's width, of `pca`, `ica` and `neurons` the width.
        k: How many are active in a vector, on average.
        over: Axes whose positions are vectors of their own, e.g. `entity`: all share the dictionary.
        n_steps: Steps of training, each on 1024 vectors.
        seed: Of the beginnings and batches.

    Raises:
        ConfigError: Wider than there are vectors, more active than there are features, constant activations, no such
            kind, or sites that are cut into different numbers of vectors.
        SiteError: No such site.
        MissingPackageError: scikit-learn is not installed (`ica`).

    Source:
        Bricken et al. 2023, *Towards Monosemanticity*; Dunefsky et al. 2024, arXiv 2406.11944 (transcoders);
        `rlmech.features.training` names those of the kinds.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> found = rlm.features.fit_dictionary(policy, torch.randn(50, 4), site="hook_obs", kind="pca", k=4)
        >>> obs = torch.randn(3, 4)
        >>> torch.allclose(found.decode(found.codes(policy, obs)), obs, atol=1e-5)
        True
    """
    (reads,) = choose_sites(policy, [site])
    layout = VectorLayout.of(policy, reads, over)
    written = layout
    if into is not None:
        (writes,) = choose_sites(policy, [into])
        written = VectorLayout.of(policy, writes, over)
        if written.n_positions != layout.n_positions:
            raise ConfigError(
                "A transcoder writes as many vectors a state as it reads.",
                given=f"{layout.n_positions} at {reads}, {written.n_positions} at {writes}",
                expected="the same number at both",
                fix="choose sites that have the axes of over= in the same sizes",
            )
    known = states_of(policy, states)
    x = layout.vectors(values_at(policy, known.obs, reads)).float()
    y = x if into is None else written.vectors(values_at(policy, known.obs, written.site)).float()
    return of_vectors(x, y, layout=layout, into=None if into is None else written, kind=kind, n_features=n_features,
                      k=k, n_steps=n_steps, seed=seed)  # fmt: skip


def of_vectors(
    x: Tensor,
    y: Tensor,
    *,
    layout: VectorLayout,
    into: VectorLayout | None,
    kind: Kind,
    n_features: int | None,
    k: int,
    n_steps: int,
    seed: int,
) -> Dictionary:
    """A dictionary of vectors that were read already."""
    width = x.shape[1]
    learned = kind in ("topk", "batch_topk", "jump_relu")
    n = (8 * width if learned else width) if n_features is None else int(n_features)
    _check(x, y, kind=kind, n=n, k=k, n_steps=n_steps, learned=learned, into=into, layout=layout)
    mean, offset = x.mean(0), y.mean(0)
    scale, scale_out = (float((part - part.mean(0)).square().mean().sqrt()) for part in (x, y))
    given: JsonObject = {"layout": layout, "into": into, "kind": kind, "k": k, "n_fitted": len(x), "seed": seed}
    if learned:
        generator = torch.Generator().manual_seed(seed)
        made = train((x - mean) / scale, (y - offset) / scale_out, n_features=n, k=k, kind=kind,  # type: ignore[arg-type]
                     n_steps=n_steps, generator=generator)  # fmt: skip
        # codes are in the unit of what is written: directions keep length one
        return Dictionary(
            encoder=made.encoder * (scale_out / scale),
            bias=made.bias * scale_out,
            decoder=made.decoder,
            mean=mean,
            offset=offset,
            threshold=None if made.threshold is None else made.threshold * scale_out,
            **given,
        )
    centred = (x - mean).double()
    if kind == "neurons":
        encoder = decoder = torch.eye(width)
    elif kind == "pca":
        decoder = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1).T[:n].float()
        encoder = decoder
    else:
        encoder, decoder = _independent(centred.numpy(), n, seed)
    return Dictionary(
        encoder=encoder, bias=torch.zeros(len(encoder)), decoder=decoder, mean=mean, offset=offset, **given
    )


def _independent(centred: np.ndarray, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Independent components by scikit-learn's FastICA, of the directions in which the vectors vary at all."""
    try:
        decomposition = importlib.import_module("sklearn.decomposition")
    except ImportError as error:
        raise MissingPackageError(
            "Independent components are scikit-learn's.",
            given="kind='ica'",
            expected="scikit-learn",
            fix='pip install "rlmech[probes]"',
        ) from error
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    n = min(n, int((sizes > _LEAST_SHARE * sizes[0]).sum()))  # whitening divides by what is left of a flat direction
    # whitened here: scikit-learn's own whitening multiplies by the sign of the first number's part, 0 where it is dead
    whitening = directions[:n].T / sizes[:n] * np.sqrt(len(centred))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says when it has not converged; what it then gives is scored like all else
        found = decomposition.FastICA(whiten=False, random_state=seed, max_iter=300).fit(centred @ whitening)
    encoder = found.components_ @ whitening.T
    return torch.as_tensor(encoder).float(), torch.as_tensor(np.linalg.pinv(encoder).T.copy()).float()


def _check(
    x: Tensor,
    y: Tensor,
    *,
    kind: str,
    n: int,
    k: int,
    n_steps: int,
    learned: bool,
    into: VectorLayout | None,
    layout: VectorLayout,
) -> None:
    width, written = x.shape[1], layout.site if into is None else into.site
    still, still_out = not bool((x != x[:1]).any()), not bool((y != y[:1]).any())
    problems: list[tuple[bool, str, str, str, str]] = [
        (
            kind not in get_args(Kind),
            f"There is no dictionary of kind {kind!r}.",
            repr(kind),
            f"one of {', '.join(get_args(Kind))}",
            "kind='topk'",
        ),
        (
            not learned and into is not None,
            "A transcoder is learned.",
            f"kind={kind!r} with into=",
            "topk, batch_topk or jump_relu",
            "kind='topk'",
        ),
        (
            len(x) < FEWEST_ROWS or (learned and n > len(x)),
            "The dictionary is wider than its data: every vector could be a feature of its own.",
            f"{n} features for {len(x)} vectors",
            "at least as many vectors as features, ten times as many to say something",
            "record more episodes, or take fewer features",
        ),
        (
            not 1 <= k <= n or (not learned and n > width) or n_steps < 1,
            "Some features are active in each vector, and a basis has no more of them than the site is wide.",
            f"k={k} of n_features={n}, n_steps={n_steps}; {layout.site} is {width} wide",
            f"k from 1 to n_features{'' if learned else f', n_features to {width}'}, n_steps from 1",
            f"k={min(8, max(1, min(n, width) // 2))}",
        ),
        (
            not bool(x.isfinite().all() & y.isfinite().all()),
            f"What stands at {layout.site} is not finite.",
            "NaN or infinite activations",
            "finite numbers",
            "choose a site that holds no masked scores",
        ),
        (
            still or still_out,
            f"What stands at {written if still_out and not still else layout.site} never changes.",
            f"the same value in all {len(x)} vectors",
            "activations that vary",
            "choose another site, or states that differ",
        ),
    ]
    for wrong, message, given, expected, fix in problems:
        if wrong:
            raise ConfigError(message, given=given, expected=expected, fix=fix)
