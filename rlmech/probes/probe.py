"""What `fit_probe` gives: the readouts, and their scores beside the controls'."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.errors import ConfigError
from rlmech.probes.linear import LinearMap
from rlmech.probes.states import activations
from rlmech.probes.targets import Kind
from rlmech.untyped import JsonObject

CONTROLS = ("trained", "observation", "untrained", "shuffled", "episode_mean")
"""The policy, and what its score must be held against."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A linear readout of one target at one site, fitted on all rows.

    Attributes:
        site: Where it reads.
        target: What it reads.
        kind: `number` or `class`.
        unit: Of a number.
        classes: Of a class.
        read_out: The affine map from the site's values, flattened, to the number or to one column a class.
        covariance: Of the site's values over the recording, flattened.
        mean: Of the same.
        shape: Of what the site selects.
        spread: Standard deviation of the target, 1 for a class.
        score: Of the cross-validated predictions, and by control; as in `Probes.scores`.
        says: The same in words.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> recording = rlm.record(policy, rlm.make_env("CartPole-v1"), seeds=range(8), progress=False)
        >>> given = {"target": {"angle": lambda r: r.observations[:, 2]}, "sites": "hook_obs"}
        >>> rlm.probes.fit_probe(policy, recording, **given).probe().target
        'angle'
    """

    site: Site
    target: str
    kind: Kind
    unit: str
    classes: tuple[str, ...]
    read_out: LinearMap
    covariance: Float[np.ndarray, "number number"] = field(repr=False)
    mean: Float[np.ndarray, " number"] = field(repr=False)
    shape: tuple[int, ...]
    spread: float
    score: dict[str, float]
    says: str

    def predict(self, policy: HookedPolicy, obs: Observation) -> np.ndarray:
        """The number, or the class by its name, that it reads for a batch of observations."""
        columns = self.read_out(activations(policy, obs, self.site))
        return np.asarray(self.classes)[columns.argmax(1)] if self.kind == "class" else columns[:, 0]

    def normal(self, of: str | None = None) -> Float[np.ndarray, " number"]:
        """The slope of the readout, flattened: of a number, or of one class's log-odds against the others'.

        Args:
            of: A class; None for the number, or the last class of two.

        Raises:
            ConfigError: There is no such class, or there are several and none is named.
        """
        if self.kind == "number":
            return self.read_out.slope[:, 0]
        if of is None and len(self.classes) == 2:
            of = self.classes[1]
        if of not in self.classes:
            raise ConfigError(
                f"The direction of which class of {self.target!r}?",
                given=repr(of),
                expected=f"one of {', '.join(self.classes)}",
                fix=f"e.g. of={self.classes[0]!r}",
            )
        slope = self.read_out.slope
        own = self.classes.index(of)
        return slope[:, own] - np.delete(slope, own, axis=1).mean(1)

    def direction(self, of: str | None = None) -> Tensor:
        """The shortest vector that raises what is read by one: a unit of the number, or one of log-odds.

        In the site's selected shape; it goes into `steer`, `subspace_patch` and `dose_response`.
        """
        normal = self.normal(of)
        return torch.as_tensor(normal / (normal @ normal)).reshape(self.shape).float()

    def pattern(self, of: str | None = None) -> Tensor:
        """How the site's values themselves move where the target rises by one: covariance times slope, rescaled.

        The slope of a readout also suppresses what would disturb it; this does not.

        Source:
            Haufe et al. 2014, *On the interpretation of weight vectors of linear models*, NeuroImage 87.
        """
        normal = self.normal(of)
        moved = self.covariance @ normal
        return torch.as_tensor(moved / (normal @ moved)).reshape(self.shape).float()


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """What `fit_probe` found.

    Attributes:
        scores: A dataset, see `fit_probe`.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> recording = rlm.record(policy, rlm.make_env("CartPole-v1"), seeds=range(8), progress=False)
        >>> given = {"target": {"angle": lambda r: r.observations[:, 2]}, "sites": "hook_obs"}
        >>> found = rlm.probes.fit_probe(policy, recording, **given)
        >>> found.scores["score"].dims
        ('target', 'site', 'control')
    """

    scores: xr.Dataset
    _probes: dict[tuple[str, int], Probe] = field(repr=False)

    def probe(self, target: str | None = None, site: int | str | Site | None = None) -> Probe:
        """One probe: of a target, at a site given by number or as it was named; None where there is one only.

        Raises:
            ConfigError: There are several, or none of that name.
        """
        fitting = {
            key: probe
            for key, probe in self._probes.items()
            if target in (None, key[0]) and (site is None or site == key[1] or site in (probe.site, probe.site.name))
        }
        if len(fitting) == 1:
            return next(iter(fitting.values()))
        targets, sites = list(dict.fromkeys(key[0] for key in self._probes)), self.scores["hook"].values.tolist()
        raise ConfigError(
            "Several probes fit." if fitting else "There is no such probe.",
            given=f"target={target!r}, site={site!r}",
            expected=f"one of the targets {targets} and of the sites 0 to {len(sites) - 1}, at {sites}",
            fix=f"e.g. probe({targets[0]!r}, 0)",
        )

    def table(self) -> pd.DataFrame:
        """One row a target and site: the score with its interval, each control's, and what that says in words."""
        rows: list[JsonObject] = []
        for target in self.scores["target"].values:
            for site in self.scores["site"].values:
                one = self.scores.sel(target=target, site=site)
                by = {name: float(one["score"].sel(control=name)) for name in CONTROLS}
                trained = one.sel(control="trained")
                low, high = float(trained["score_low"]), float(trained["score_high"])
                probe = self._probes[(str(target), int(site))]
                rows.append({"target": target, "site": str(probe.site), "score": by.pop("trained"), "low": low,
                             "high": high, **by, "says": str(one["says"].values)})  # fmt: skip
        return pd.DataFrame(rows)
