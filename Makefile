# Everything sets itself up: the first target that needs it makes .venv with the pinned packages.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help demo test test-fast check format docs bench clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# torch comes first and by its pin: anything that depends on it would otherwise bring the newest CUDA build.
$(READY): setup.cfg constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "bmlpipe needs Python 3.10 or newer, this is %s; try: make PYTHON=python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,dev,docs]'
	@touch $@

demo: $(READY)  ## Make a small data set of real video files, extract, shard, train with and without OPM (under 5 minutes)
	$(BIN)/bmlpipe demo --out demo

# One process per core; tests marked xdist_group("both_cores") start several processes and run one after the other.
PYTEST := $(BIN)/python -m pytest --numprocesses auto

test: $(READY) .typing  ## Run all tests
	$(PYTEST) --dist loadgroup

test-fast: $(READY) .typing  ## Run the tests that take less than a few seconds each (under 2 minutes in all)
	$(PYTEST) --dist worksteal -m "not slow"

check: $(READY) .typing  ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## Apply ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY) .typing  ## Build the documentation site into docs/_site, with all links checked
	cd docs && ../$(BIN)/zensical build --clean --strict --config-file mkdocs.yml

bench: $(READY)  ## Run every program in benchmarks/ and record benchmarks/results/
	@mkdir -p benchmarks/results; for program in benchmarks/[a-z]*.py; do \
	  name=$$(basename $$program .py); echo "== $$name"; \
	  $(BIN)/python $$program --json benchmarks/results/$$name.json || exit 1; done

# mypy does not follow the editable install of mapped folders; these links show it the namespace.
.typing:
	mkdir -p .typing/bmlpipe
	for folder in manifests shards pipeline train; do ln -sfn ../../$$folder .typing/bmlpipe/$$folder; done

clean:  ## Remove the virtual environment and caches
	rm -rf $(VENV) .typing .mypy_cache .ruff_cache .pytest_cache build docs/_site docs/.cache ./*.egg-info
