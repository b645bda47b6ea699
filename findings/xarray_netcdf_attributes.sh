#!/usr/bin/env bash
# Package: xarray 2026.9.0 with scipy 1.17.1, h5netcdf 1.8.2 and netCDF4 1.7.5.1.post1.
#
# Expected: load_dataset returns what to_netcdf wrote: an attribute that was a list is a sequence again, and an
#   int64 variable is int64, with every engine.
# Seen: a list of one number comes back as a number without a length, while a list of two is an array, with all three
#   engines: code that loops over the layers of a saved result fails only for results with one layer. The scipy
#   engine, the one that is left when neither other package is installed, also turns int64 into int32.
#
# Output:
#   scipy   : shapes of [3] and [3, 4]: ((), (2,)), seed: int32
#   h5netcdf: shapes of [3] and [3, 4]: ((), (2,)), seed: int64
#   netcdf4 : shapes of [3] and [3, 4]: ((), (2,)), seed: int64
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check xarray==2026.9.0 scipy==1.17.1 h5netcdf==1.8.2 h5py==3.16.0 netCDF4==1.7.5.1.post1 numpy==2.4.6

cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import xarray as xr

data = xr.Dataset({"seed": ("episode", np.arange(3, dtype="int64"))}, attrs={"one_layer": [3], "two_layers": [3, 4]})
seen = {}
for engine in ("scipy", "h5netcdf", "netcdf4"):
    data.to_netcdf(f"{engine}.nc", engine=engine)
    back = xr.load_dataset(f"{engine}.nc", engine=engine)
    shapes = tuple(np.shape(back.attrs[name]) for name in data.attrs)
    print(f"{engine:8s}: shapes of [3] and [3, 4]: {shapes}, seed: {back.seed.dtype}")
    seen[engine] = (shapes, str(back.seed.dtype))

expected = {engine: (((), (2,)), "int64") for engine in ("h5netcdf", "netcdf4")}
expected["scipy"] = (((), (2,)), "int32")
if seen != expected:
    raise SystemExit("the behaviour has changed")
PY
