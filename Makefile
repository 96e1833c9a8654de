# Everything starts here: each target makes .venv with the standard library when it is missing, installs what it
# needs, and runs. Nothing else comes first.
#
#   make demo                  train SimCLR on handwritten digits in about a minute
#   make test                  the default suite            make test PLUGIN=images   one plugin's tests
#   make test-all              also slow tests, demonstrations and parity with peer libraries
#   make docs                  the documentation, into docs/_build/html
#   make bench                 timings beside peers, into benchmarks/results
#   make lint                  ruff, import-linter, pyright

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PLUGIN ?=
PLUGINS := $(if $(PLUGIN),plugins/$(PLUGIN),$(wildcard plugins/*))
TESTS := $(if $(PLUGIN),tests/$(PLUGIN) tests/catalogue,tests)
SOURCES := pyproject.toml core/pyproject.toml $(wildcard plugins/*/pyproject.toml)
# One thread a test worker, so that the workers do not fight for the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal --jaxtyping-packages=nearfar,typecheck.check

.PHONY: demo test test-all docs bench lint clean

demo: $(VENV)/.ready
	$(BIN)/nearfar images demo

test: $(VENV)/.ready-test
	$(PYTEST) $(TESTS) -m "not slow and not parity and not cuda"

test-all: $(VENV)/.ready-test $(VENV)/.ready-peers
	$(PYTEST) $(TESTS)

docs: $(VENV)/.ready-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(VENV)/.ready-peers
	$(BIN)/python benchmarks/objectives.py
	$(BIN)/python benchmarks/views.py
	$(BIN)/python benchmarks/knn.py
	$(BIN)/python benchmarks/queues.py
	$(BIN)/python benchmarks/sinkhorn.py
	$(BIN)/python benchmarks/gradcache.py
	$(BIN)/python benchmarks/worlds.py
	$(BIN)/python benchmarks/shards.py

lint: $(VENV)/.ready-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports && $(BIN)/pyright

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade "pip>=25.1"

$(VENV)/.ready: $(VENV)/bin/python $(SOURCES)
	$(PIP) -e core $(foreach plugin,$(PLUGINS),-e $(plugin))
	@touch $@

$(VENV)/.ready-test: $(VENV)/.ready
	$(PIP) --group test
	@touch $@

$(VENV)/.ready-peers: $(VENV)/.ready
	$(PIP) --group peers
	@touch $@

$(VENV)/.ready-docs: $(VENV)/.ready
	$(PIP) --group docs
	@touch $@

clean:
	rm -rf $(VENV) docs/_build runs
