"""A policy as a few rules: small trees and sparse linear rules that are taught by it, and judged by how they drive.

- `distil`: teach students of several sizes; `Distilled` holds them, their rules as text, and how faithful they are and
  how they drive beside the policy.
"""

from rlmech.distil.teaching import Distilled, distil

__all__ = ["Distilled", "distil"]
