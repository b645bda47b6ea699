"""How many samples a precision takes, from the spread that was found, or from the largest that it may be."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy.special import chdtri, ndtri


def largest_spread(
    values: Float[np.ndarray, "site sample"], *, scale: float, confidence: float = 0.95
) -> Float[np.ndarray, " site"]:
    """The upper end of each site's standard deviation, which a plan should count with: few samples show too little.

    Args:
        values: Any unit.
        scale: How large a value can be: where all samples are the same, unseen others, whose share is at most
            1 - (1 - confidence)^(1/n), are taken to lie that far off.
        confidence: How often the end is at least the true spread, exactly for normal samples.

    Source:
        The chi-squared distribution of a normal sample's variance; with no variance seen, the rule of three.

    Example:
        >>> import numpy as np
        >>> [round(float(s), 2) for s in largest_spread(np.array([[1.0, -1.0] * 4, [0.0] * 8]), scale=1.0)]
        [1.92, 0.56]
    """
    n = values.shape[1]
    spread = values.std(1, ddof=1)
    upper = spread * np.sqrt((n - 1) / float(chdtri(n - 1, confidence)))
    unseen = 1 - (1 - confidence) ** (1 / n)
    return np.where(spread > 0, upper, np.sqrt(unseen) * scale)


def n_for_half_width(spread: float, *, half_width: float, confidence: float = 0.95) -> int:
    """Samples that an interval of a mean needs to be as narrow as wanted, by the normal interval.

    Args:
        spread: Standard deviation of the samples.
        half_width: Half the interval's width, in the same unit.
        confidence: Its coverage.

    Example:
        >>> n_for_half_width(3.6, half_width=0.5)
        200
    """
    return max(2, math.ceil((float(ndtri((1 + confidence) / 2)) * spread / half_width) ** 2))
