#!/usr/bin/env bash
# Package: quantus 0.6.0 (NumPy 2.4.6).
#
# Expected: `perturb_baseline="black"`, the default of its completeness and faithfulness metrics, puts zeros in place of
#   features, as black is 0 in a picture. With NumPy 2.4 its areas under curves are computed.
# Seen: "black" is the smallest number of each input by itself. For states of a policy, which may be negative and have a
#   unit of their own for each feature, it is another baseline in each state; an attribution that is complete against
#   zeros is measured against that one. And the area under a curve raises: it calls numpy.trapz, which NumPy 2.4 lacks.
#
# Output:
#   state [-3.   0.5  1.   2. ] : features 1 and 3 become -3.0
#   state [-0.2  0.5  1.   2. ] : features 1 and 3 become -0.2
#   area under a curve: AttributeError: module 'numpy' has no attribute 'trapz'
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check quantus==0.6.0 numpy==2.4.6

cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import numpy as np
from quantus.functions.perturb_func import baseline_replacement_by_indices
from quantus.helpers.utils import calculate_auc

put = []
for first in (-3.0, -0.2):
    state = np.array([first, 0.5, 1.0, 2.0])
    changed = baseline_replacement_by_indices(state, np.array([1, 3]), indexed_axes=[0], perturb_baseline="black")
    put.append(sorted(set(changed[[1, 3]].tolist())))
    print(f"state {state} : features 1 and 3 become {put[-1][0]}")
said = ""
try:
    calculate_auc(np.array([1.0, 0.5, 0.2]))
except AttributeError as error:
    said = f"{type(error).__name__}: {error}"
print("area under a curve:", said)
if put != [[-3.0], [-0.2]] or "trapz" not in said:
    raise SystemExit("the behaviour has changed")
PY
