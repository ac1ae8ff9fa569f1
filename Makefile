# Every target installs what it needs by itself, once: `make demo` works in a fresh clone.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PINS := pyproject.toml constraints.txt
# What pip fetches, one line a package; what it warns of and dies of goes to stderr.
PIP := $(BIN)/python -m pip install --constraint constraints.txt --progress-bar off
SHOW := | awk '/^ *(Downloading|Building wheels)/ { print substr($$0, 1, 100); fflush() }'
# Two processes of one thread each beat one process of two threads on small models.
TEST_JOBS ?= 2
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.PHONY: help setup test test-slow lint demo bench docs tokenizers teacher clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.dev  ## everything a developer needs, in .venv

$(VENV)/.core: $(PINS)
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; \
	  sys.exit(0 if sys.version_info >= (3, 10) else \
	  "crosstill needs Python 3.10 or newer, $(PYTHON) is " + v + \
	  ": run make with PYTHON=python3.11 or the like")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) cannot make a virtual environment: install its venv package" >&2; exit 2; }
	@echo "Installing torch in $(VENV) (200 MB as a CPU wheel), this takes a minute or two ..."
	@$(PIP) 'torch==2.13.0' $(SHOW)
	@echo "Installing crosstill and what it runs on ..."
	@$(PIP) -e '.[peft,gguf]' $(SHOW)
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "Installing the developers' tools ..."
	@$(PIP) -e '.[dev]' $(SHOW)
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	@echo "Installing the tools for the documentation ..."
	@$(PIP) -e '.[docs]' $(SHOW)
	@touch $@

test: $(VENV)/.dev  ## the test suite, without the slow tests
	$(TEST_ENV) $(BIN)/python -m pytest -n $(TEST_JOBS) $(PYTEST_ARGS)

test-slow: $(VENV)/.dev  ## the slow tests
	$(TEST_ENV) $(BIN)/python -m pytest -n $(TEST_JOBS) -m slow $(PYTEST_ARGS)

lint: $(VENV)/.dev  ## ruff, pyright and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

demo: $(VENV)/.core  ## distil a small student from a real teacher across tokenizers, on a CPU
	$(BIN)/python examples/demo.py

bench: $(VENV)/.core tokenizers teacher  ## the benchmarks, about 20 minutes; results in runs/bench
	mkdir -p runs/bench
	$(BIN)/python benchmarks/alignment.py --out runs/bench/alignment.json
	$(BIN)/python benchmarks/cdm.py --out runs/bench/cdm.json
	$(BIN)/python benchmarks/mined.py --out runs/bench/mined.json
	$(BIN)/python benchmarks/losses.py --out runs/bench/losses.json
	$(BIN)/python benchmarks/prefix_kl.py --out runs/bench/prefix_kl.json
	$(BIN)/python benchmarks/ensemble.py --out runs/bench/ensemble.json
	$(BIN)/python benchmarks/alm_head.py --out runs/bench/alm_head.json
	$(BIN)/python benchmarks/training_step.py --out runs/bench/training_step.json
	$(BIN)/python benchmarks/training_step.py --bf16 --out runs/bench/training_step_bf16.json

docs: $(VENV)/.docs  ## the documentation, in site/
	$(BIN)/mkdocs build --strict

tokenizers: $(VENV)/.core  ## fetch real tokenizers, which the tests in tests/real read
	$(BIN)/python tools/fetch_tokenizers.py

teacher: $(VENV)/.core  ## fetch the real teacher, which tests/real and the benchmarks read
	$(BIN)/python examples/demo_parts/teacher.py

clean:  ## remove caches and built documentation; .venv and runs stay
	rm -rf build dist site .pytest_cache .ruff_cache .import_linter_cache .benchmarks
	find src tests tools benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + \
	  2>/dev/null || true
