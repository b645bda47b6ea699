# Two commands: `make demo` does the main job on real input, `make test` passes the tests. Both set everything up.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.docs-installed
KERNEL := rlmech/simulators/highway/fast/kernel.c
export OMP_NUM_THREADS ?= 1

.PHONY: demo test check docs thumbnails changelog stub bench bench-peers clean

$(STAMP): pyproject.toml constraints.txt $(KERNEL)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/rlmech demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $(DOCS_STAMP)

docs: $(DOCS_STAMP)
	$(BIN)/python -m docs.generate

changelog: $(STAMP)
	$(BIN)/towncrier build --draft --version next

thumbnails: $(STAMP)
	$(BIN)/python -c "from docs.generate.gallery import draw_thumbnails; draw_thumbnails()"

stub: $(STAMP)
	$(BIN)/python -c "from rlmech.public_names import stub; open('rlmech/__init__.pyi', 'w').write(stub())"

bench: $(STAMP)
	$(BIN)/python -m benchmarks

bench-peers: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -r benchmarks/requirements-peers.txt

clean:
	rm -rf $(VENV) build report *.egg-info
