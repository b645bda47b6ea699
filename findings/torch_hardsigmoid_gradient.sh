#!/usr/bin/env bash
# Package: torch 2.13.0 (CPU), torch.nn.functional.hardsigmoid in float64.
#
# Expected: in float64 the gradient between the kinks is 1/6 to the last bits, as the function's own slope is.
# Seen: the gradient is 1/6 as rounded to float32, 5e-9 off, seven digits fewer than the forward pass has. A check of
#   completeness or of finite differences in float64 fails on it at 1e-9.
#
# Output:
#   slope of the forward pass minus 1/6: 0.0e+00
#   gradient minus 1/6:                  5.0e-09
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
from torch.nn.functional import hardsigmoid

x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
hardsigmoid(x).backward()
one = torch.ones(1, dtype=torch.float64)
slope = (hardsigmoid(one) - hardsigmoid(0 * one)).item() - 1 / 6
gradient = x.grad.item() - 1 / 6
print(f"slope of the forward pass minus 1/6: {abs(slope) if abs(slope) > 1e-15 else 0:.1e}")
print(f"gradient minus 1/6:                  {gradient:.1e}")
if abs(slope) > 1e-15 or not 4e-9 < abs(gradient) < 6e-9:
    raise SystemExit("the behaviour has changed")
PY
