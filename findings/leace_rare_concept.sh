#!/usr/bin/env bash
# Package: concept-erasure 0.2.4 (torch 2.13.0, NumPy 2.4.6).
#
# Expected: after LeaceEraser.fit(x, z) no linear probe finds z in what the eraser gives: the class means are the same.
# Seen: the default `svd_tol=0.01` is compared with the covariance of whitened x and z as it is, whose size is that of z's
#   own spread. A binary concept that holds in one state of a thousand, such as a crash, has a spread of 0.03: it is left
#   in place, whole and without a word, though its two means are four standard deviations apart. A smaller svd_tol, or z
#   scaled to unit variance, erases it.
#
# Output:
#   share of states 0.1   : difference of means 4.00 before, 0.00 after
#   share of states 0.01  : difference of means 4.01 before, 0.00 after
#   share of states 0.001 : difference of means 4.06 before, 4.06 after
#   share of states 0.001, svd_tol=1e-6 : 0.00 after
#   share of states 0.001, z of unit variance : 0.00 after
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 concept-erasure==0.2.4

cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
from concept_erasure import LeaceEraser

draws = torch.Generator().manual_seed(0)
n_states = 200_000
states = torch.randn(n_states, 4, generator=draws, dtype=torch.float64)


def difference(x, held):
    return float(x[held, 0].mean() - x[~held, 0].mean())


found = {}
for share in (0.1, 0.01, 0.001):
    held = torch.rand(n_states, generator=draws) < share
    x, z = states.clone(), held.double()
    x[held, 0] += 4
    found[share] = difference(LeaceEraser.fit(x, z)(x), held)
    print(f"share of states {share:<6}: difference of means {difference(x, held):.2f} before, {abs(found[share]):.2f} after")

small = difference(LeaceEraser.fit(x, z, svd_tol=1e-6)(x), held)
scaled = difference(LeaceEraser.fit(x, z / z.std())(x), held)
print(f"share of states 0.001, svd_tol=1e-6 : {abs(small):.2f} after")
print(f"share of states 0.001, z of unit variance : {abs(scaled):.2f} after")
if not (abs(found[0.1]) < 0.01 and abs(found[0.01]) < 0.01 and found[0.001] > 3.5 and max(abs(small), abs(scaled)) < 0.01):
    raise SystemExit("the behaviour has changed")
PY
