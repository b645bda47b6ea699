"""The documentation site: pages written by hand in `docs/`, pages generated from the code, built by Zensical.

`make docs` builds `build/docs/site/index.html`, with no network. Generated are the gallery (scripts that are run), the
reference (from docstrings), the error index (from the places that raise), and the table of other libraries' names.
"""
