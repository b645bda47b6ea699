#!/usr/bin/env bash
# Package: shap 0.51.0 (scikit-learn 1.9.1).
#
# Expected: for a linear function, a zero background and the input of ones, the Shapley value of feature i is its
#   weight: 30 different values from 1 to 2, none of them zero.
# Seen: with the default arguments KernelExplainer fits only 10 features (l1_reg="num_features(10)") and gives 0 to the
#   other 20. The values still sum to the output, so the usual check of completeness passes, and the ten that
#   remain carry the share of all. l1_reg="auto", the name that suggests the default, and l1_reg=False both give all 30.
#
# Output:
#   l1_reg default : 10 of 30 not zero, sum 45.000000, largest error 2.992866
#   l1_reg auto    : 30 of 30 not zero, sum 45.000000, largest error 0.000000
#   l1_reg False   : 30 of 30 not zero, sum 45.000000, largest error 0.000000
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check shap==0.51.0 scikit-learn==1.9.1 numpy==2.4.6

cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import shap

weights = np.linspace(1, 2, 30)
explainer = shap.KernelExplainer(lambda rows: rows @ weights, np.zeros((1, 30)))
seen = {}
for title, arguments in (("default", {}), ("auto", {"l1_reg": "auto"}), ("False", {"l1_reg": False})):
    np.random.seed(0)
    values = explainer.shap_values(np.ones((1, 30)), silent=True, **arguments)[0]
    kept = int((np.abs(values) > 1e-9).sum())
    error = float(np.abs(values - weights).max())
    print(f"l1_reg {title:8s}: {kept} of 30 not zero, sum {values.sum():.6f}, largest error {error:.6f}")
    seen[title] = (kept, bool(np.isclose(values.sum(), weights.sum())), error < 1e-6)

if seen != {"default": (10, True, False), "auto": (30, True, True), "False": (30, True, True)}:
    raise SystemExit("the behaviour has changed")
PY
