"""Variables of a result that are computed when they are first looked at: what few need and many would wait for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from rlmech.core.policy import HookedPolicy
from rlmech.errors import CacheError


class Later:
    """A dataset that is made when one of its variables is first read.

    Args:
        policy: The policy whose weights must be the same by then.
        make: Makes the dataset.
    """

    def __init__(self, policy: HookedPolicy, make: Callable[[], xr.Dataset]) -> None:
        self.policy, self.make, self.fingerprint = policy, make, policy.fingerprint
        self.made: xr.Dataset | None = None

    def read(self, name: str) -> np.ndarray:
        """A variable's values.

        Raises:
            CacheError: They were not computed yet, and the weights have changed since.
        """
        if self.made is None:
            if self.policy.fingerprint != self.fingerprint:
                raise CacheError(
                    f"{name!r} was not computed yet, and the weights have changed since.",
                    given="a result from before the change",
                    expected="the weights of the call",
                    fix="call the function again, and read it before the weights change",
                )
            self.made = self.make()
        return self.made[name].values

    def variable(
        self, name: str, dims: tuple[str, ...], shape: tuple[int, ...], dtype: object, attrs: Mapping[str, object]
    ) -> xr.Variable:
        """A variable that is read from the dataset when it is looked at."""
        return xr.Variable(dims, indexing.LazilyIndexedArray(_OnAccess(self, name, shape, dtype)), dict(attrs))


class _OnAccess(BackendArray):
    def __init__(self, later: Later, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        self.later, self.name, self.shape, self.dtype = later, name, shape, np.dtype(dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        support = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, support, lambda k: self.later.read(self.name)[k])
