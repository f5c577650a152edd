# `make demo` and `make test` are all that a fresh machine with Python 3.11 to 3.13 needs.
#
# PYTHON is the interpreter that a new environment is made from, VENV where it lies:
#     make test PYTHON=python3.12 VENV=.venv312
# What is installed is remembered in stamp files, so a second `make` installs nothing.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n 2 --dist loadfile
BENCH_ARGS ?= --size small
BENCHMARKS ?= benchmarks/decode.py benchmarks/whole_run.py benchmarks/landscape_full.py \
	benchmarks/memory.py benchmarks/truth.py benchmarks/embedding.py benchmarks/scaling.py \
	benchmarks/store.py benchmarks/pca.py benchmarks/linkage.py benchmarks/growth.py \
	benchmarks/planned.py benchmarks/million.py

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
RUNTIME := $(VENV)/.scapedist-runtime
TESTING := $(VENV)/.scapedist-testing

.PHONY: help demo environment test lint types format bench clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:
	@echo "make demo     the whole job on the bundled model; says where the report lies"
	@echo "make test     the tests (PYTEST_ARGS='-k mask' passes options on)"
	@echo "make lint     ruff: format and rules        make types   mypy"
	@echo "make format   let ruff mend what it can     make bench   the benchmarks, at small size,"
	@echo "              and benchmarks/RESULTS.md (BENCH_ARGS='--size full')"
	@echo "make clean    remove caches and builds; the environment and the runs stay"

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	{ echo "scapedist needs Python 3.11 to 3.13; $(PYTHON) is not. Name one: make PYTHON=python3.12"; \
	  exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	{ rm -f $@; echo "A virtual environment needs Python's venv and ensurepip (Debian: python3-venv)."; \
	  exit 2; }

$(RUNTIME): pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(PIP_INSTALL) --editable .
	@touch $@

$(TESTING): pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(PIP_INSTALL) --editable '.[test]'
	@touch $(RUNTIME) $@

demo: $(RUNTIME)
	$(BIN)/scapedist demo

environment: $(TESTING)

test: $(TESTING)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(TESTING)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(TESTING)
	$(BIN)/mypy

format: $(TESTING)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(TESTING)
	@for script in $(BENCHMARKS); do \
	  echo "== $$script"; results=benchmarks/results/$$(basename $$script .py).json; \
	  $(BIN)/python $$script $(BENCH_ARGS) --output $$results || exit 1; \
	done
	@$(BIN)/python benchmarks/results.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find scapedist tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
