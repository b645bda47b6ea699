#!/usr/bin/env bash
# Package: torch 2.13.0 (CPU), torch.export.export(strict=False) with a dynamic dimension.
#
# Expected: what an export made is freed once the exported program is gone, so that a service which exports many small
#   networks keeps a constant amount of memory.
# Seen: one ShapeEnv for each export stays reachable after the program was dropped and garbage was collected. Unbounded
#   lru_caches on ShapeEnv's own methods hold it.
#
# Output:
#   ShapeEnv objects alive after 20 exports whose programs were dropped: 20
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import gc

import torch
from torch.export import Dim, export
from torch.fx.experimental.symbolic_shapes import ShapeEnv

for _ in range(20):
    program = export(torch.nn.Linear(4, 2), (torch.rand(3, 4),), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False)
    del program
gc.collect()
alive = sum(type(kept) is ShapeEnv for kept in gc.get_objects())
print("ShapeEnv objects alive after 20 exports whose programs were dropped:", alive)
if alive < 20:
    raise SystemExit("the behaviour has changed")
PY
