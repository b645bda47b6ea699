#!/usr/bin/env bash
# Package: zensical 0.0.73.
#
# Expected: the `offline` plugin makes a site that is read as files, without a network, search included.
# Seen: the index is a script of the site's own (`search.js`), but each page takes the script that lets search run in files
#   from another host, unpkg.com. Without a network the search box says that search is unavailable.
#
# Output:
#   search.js is there: True
#   loaded from elsewhere: ['https://unpkg.com/iframe-worker/shim']
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check zensical==0.0.73

mkdir -p "$work/site/docs" && cd "$work/site"
printf '# A page\n\nWith words.\n' >docs/index.md
printf '[project]\nsite_name = "site"\nuse_directory_urls = false\n[project.theme]\nfont = false\n' >zensical.toml
printf '[project.plugins.search]\n[project.plugins.offline]\n' >>zensical.toml
"$work/venv/bin/zensical" build >/dev/null
"$work/venv/bin/python" - <<'PY'
import re
from pathlib import Path

page = Path("site/index.html").read_text()
loaded = sorted(set(re.findall(r"<script[^>]*src=[\"']?(https?://[^\s\"'>]+)", page)))
print("search.js is there:", Path("site/search.js").is_file())
print("loaded from elsewhere:", loaded)
if loaded != ["https://unpkg.com/iframe-worker/shim"] or not Path("site/search.js").is_file():
    raise SystemExit("the behaviour has changed")
PY
