"""Dictionaries: a site's value as a sum of few directions, out of more than it has dimensions, and edits of these.

    codes = gate(W_e (value - mean) + b)     value = offset + sum of codes x directions + error

The gate keeps the k largest (`topk`), what is above one threshold (`batch_topk`) or above each feature's own
(`jump_relu`). Principal and independent components and neurons are dictionaries too, whose k largest parts are kept:
what a learned one must do better than. Cost: two products [row number] x [number feature].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rlmech.core.edit import Edit
from rlmech.core.interventions import steer
from rlmech.core.many_rows import values_at
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.errors import ConfigError, SiteError
from rlmech.features.layout import VectorLayout
from rlmech.files import read_sealed, reading, write_sealed
from rlmech.untyped import JsonObject

LearnedKind = Literal["topk", "batch_topk", "jump_relu"]
Kind = Literal["topk", "batch_topk", "jump_relu", "pca", "ica", "neurons"]
Splice = Literal["reconstruction", "with_error", "error_only"]
FORMAT = "rlmech.dictionary/1"
_PARTS = ("encoder", "bias", "decoder", "mean", "offset", "threshold")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dictionary:
    """Directions at a site, and how much of each a value holds.

    Attributes:
        layout: Where it reads, and how the value is cut into vectors.
        kind: How codes are made.
        k: Features that are active in a vector; of `batch_topk` and `jump_relu` on average.
        encoder: W_e, `[feature number]`.
        bias: b, `[feature]`.
        decoder: The directions, `[feature number]`.
        mean: Subtracted from what is read, `[number]`.
        offset: Added to what is written, `[number]`: the value where no feature is active.
        threshold: What codes must exceed, `[feature]`; None where the k largest are kept.
        into: Where a transcoder writes: it predicts this site's value from the other's. None: it reads and writes the
            same.
        n_fitted: Vectors that it was fitted on.
        seed: Of the fit.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> found = rlm.features.fit_dictionary(
        ...     policy, torch.randn(200, 4), site="1.hook_out", n_features=16, k=2, n_steps=20
        ... )
        >>> found.codes(policy, torch.randn(3, 4)).shape
        torch.Size([3, 16])
        >>> rlm.features.Dictionary.load(found.save("dictionary.safetensors")).digest == found.digest
        True
    """

    layout: VectorLayout
    kind: Kind
    k: int
    encoder: Float[Tensor, "feature number"] = field(repr=False)
    bias: Float[Tensor, " feature"] = field(repr=False)
    decoder: Float[Tensor, "feature number_out"] = field(repr=False)
    mean: Float[Tensor, " number"] = field(repr=False)
    offset: Float[Tensor, " number_out"] = field(repr=False)
    threshold: Float[Tensor, " feature"] | None = field(default=None, repr=False)
    into: VectorLayout | None = None
    n_fitted: int
    seed: int

    def __len__(self) -> int:
        return len(self.decoder)

    @property
    def site(self) -> Site:
        """Where it reads."""
        return self.layout.site

    @property
    def is_learned(self) -> bool:
        """Whether it is sparse by training, and its codes are not negative."""
        return self.kind in ("topk", "batch_topk", "jump_relu")

    @property
    def digest(self) -> str:
        """A hash of all its numbers: 16 hexadecimal digits."""
        made = hashlib.sha256(f"{self.layout} {self.into} {self.kind} {self.k}".encode())
        for part in self._parts().values():
            if part is not None:
                made.update(part.detach().cpu().contiguous().numpy().tobytes())
        return made.hexdigest()[:16]

    def encode(self, vectors: Float[Tensor, "row number"]) -> Float[Tensor, "row feature"]:
        """The codes of some vectors."""
        before = (vectors.to(self.encoder) - self.mean) @ self.encoder.T + self.bias
        if self.threshold is not None:
            return torch.where(before > self.threshold, before, 0.0)
        sizes = before.abs() * self.decoder.norm(dim=1) if not self.is_learned else before.clamp(min=0)
        if self.k >= before.shape[1]:
            return before if not self.is_learned else sizes
        least = sizes.topk(self.k, dim=1).values[:, -1:]
        kept = (sizes >= least) & (sizes > 0)
        return torch.where(kept, before, 0.0)

    def decode(self, codes: Float[Tensor, "row feature"]) -> Float[Tensor, "row number_out"]:
        """The vectors that some codes stand for."""
        return codes.to(self.decoder) @ self.decoder + self.offset

    def codes(self, policy: HookedPolicy, obs: Observation) -> Float[Tensor, "row feature"]:
        """The codes of some observations: states first, positions within, where it has several vectors a state."""
        return self.encode(self.layout.vectors(values_at(policy, obs, self.site)))

    def ablate(self, *features: int) -> Edit:
        """Take some features out of the value; all else stays, what the dictionary does not explain included."""
        return self.scale(dict.fromkeys(features, 0.0))

    def scale(self, factors: Mapping[int, float]) -> Edit:
        """Multiply some features; all else stays, what the dictionary does not explain included.

        Args:
            factors: By feature; 0 takes it out, 2 doubles it.

        Raises:
            SiteError: There is no such feature.
            ConfigError: It is a transcoder, which is edited where it is spliced in: `splice_hooks`.
        """
        self._refuse_transcoder()
        chosen = {self._feature(feature): float(factor) for feature, factor in factors.items()}
        mapping = FeatureMap(dictionary=self, factors=tuple(sorted(chosen.items())), splice="with_error")
        return Edit(site=self.site, kind="map", mapping=mapping)

    def steer(self, feature: int, amount: float) -> Edit:
        """Add a feature's direction, at every position: `amount` in the unit of its code."""
        self._refuse_transcoder()
        return steer(self.site, self._spread(self.decoder[self._feature(feature)]), amount)

    def splice(self, how: Splice = "reconstruction") -> Edit:
        """Put what the dictionary makes of the value in its place.

        Args:
            how: `reconstruction`: what it explains; `with_error`: that and the rest, which changes nothing;
                `error_only`: the rest, with every feature taken out.

        Raises:
            ConfigError: It is a transcoder: `splice_hooks`.
        """
        self._refuse_transcoder()
        return Edit(site=self.site, kind="map", mapping=FeatureMap(dictionary=self, splice=how))

    def save(self, path: str | Path) -> Path:
        """Write it as a safetensors file with a checksum, in one step, replacing a file of that name."""
        path = Path(path)
        given = {"kind": self.kind, "k": self.k, "n_fitted": self.n_fitted, "seed": self.seed}
        layouts = {"layout": self.layout.described(), "into": None if self.into is None else self.into.described()}
        tensors = {
            name: part.detach().cpu().contiguous().clone() for name, part in self._parts().items() if part is not None
        }
        write_sealed(path, tensors, metadata={"format": FORMAT, "dictionary": json.dumps(given | layouts)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> Dictionary:
        """Read a dictionary that `save` wrote; nothing is unpickled.

        Raises:
            MissingFileError: There is no such file.
            ConfigError: It is no dictionary, or damaged.
        """
        path = Path(path)
        with reading(
            path,
            what="dictionary",
            writer="Dictionary.save",
            expected=f"a file of the format {FORMAT!r}, bit for bit as it was written",
        ):
            tensors, said = read_sealed(path)
            if said["format"] != FORMAT or not set(tensors) <= set(_PARTS):
                raise ValueError(f"format {said['format']!r}")
            given = json.loads(said["dictionary"])
            layout, into = (part and VectorLayout.from_description(part) for part in (given["layout"], given["into"]))
            rest: JsonObject = {name: given[name] for name in ("kind", "k", "n_fitted", "seed")} | tensors
            return cls(layout=layout, into=into, **rest)

    def _parts(self) -> dict[str, Tensor | None]:
        return {name: getattr(self, name) for name in _PARTS}

    def _spread(self, direction: Tensor) -> Tensor:
        """A vector as `steer` takes it: of the last axis where each position along the others has its own."""
        return direction if self.layout.over else direction.reshape(-1)

    def _feature(self, feature: int) -> int:
        if not -len(self) <= feature < len(self):
            raise SiteError(
                f"The dictionary has no feature {feature}.",
                given=feature,
                expected=f"0 to {len(self) - 1}",
                fix="rlm.features.feature_effects lists what each does",
            )
        return feature % len(self)

    def _refuse_transcoder(self) -> None:
        if self.into is not None:
            raise ConfigError(
                "A transcoder reads one site and writes another, and an edit acts at one.",
                given=f"a transcoder from {self.site} to {self.into.site}",
                expected="a dictionary of one site",
                fix="policy.hooks(fwd_hooks=rlm.features.splice_hooks(transcoder)), or the same as a condition",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMap:
    """What an edit of features does to a value: see `Dictionary.scale` and `splice`."""

    dictionary: Dictionary
    factors: tuple[tuple[int, float], ...] = ()
    splice: Splice = "with_error"

    def __repr__(self) -> str:
        return f"FeatureMap({self.dictionary.digest}, {self.factors}, {self.splice})"

    def __call__(self, value: Tensor) -> Tensor:
        """The new value."""
        own = self.dictionary
        vectors = own.layout.vectors(value).to(own.decoder)
        codes = own.encode(vectors)
        if self.splice == "with_error":
            if not self.factors:
                return value
            features = torch.tensor([feature for feature, _ in self.factors])
            change = torch.tensor([factor - 1 for _, factor in self.factors]).to(codes)
            new = vectors + (codes[:, features] * change) @ own.decoder[features]
        elif self.splice == "error_only":
            new = vectors - codes @ own.decoder
        else:
            new = own.decode(codes)
        return own.layout.value(new, like=value).to(value)
