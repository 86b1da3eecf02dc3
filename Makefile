# What a reader of this repository types. Everything lives in $(VENV); nothing else on the machine is touched.
#   make demo DEMO_ARGS="--input FOLDER --minutes 30"
#   make setup PYTHON=python3.12
#   make setup TORCH_INDEX=URL    (a package index with another build of torch, such as a CPU-only one)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
DEMO_ARGS ?=
TEST_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install -c constraints.txt
# A stamp says: installed with these very pins. The one with the development tools implies the one without.
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: help demo test lint types setup clean

help:  ## say what there is
	@grep -hE '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z]+):.*## /\1|/' \
		| while IFS='|' read -r name words; do printf '  make %-7s %s\n' "$$name" "$$words"; done

demo: $(RUN_STAMP)  ## set up, then tissue in, report out, in minutes (options: DEMO_ARGS="...")
	@$(BIN)/tera-mind demo $(DEMO_ARGS)

test: $(DEV_STAMP)  ## set up, then run the tests, without those marked slow or gpu
	@$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m "not slow and not gpu" $(TEST_ARGS)

lint: $(DEV_STAMP)  ## style: ruff check and ruff format --check
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@echo "style: ok"

types: $(DEV_STAMP)  ## strict static types
	@$(BIN)/mypy

setup: $(DEV_STAMP)  ## install the package and the development tools into .venv (once)

clean:  ## remove caches and build leftovers (.venv, stores and runs stay)
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find tera_mind datamodules callbacks tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@version=$$($(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null || echo "not there"); \
	case "$$version" in 3.11.*|3.12.*) ;; *) \
		echo "tera-mind needs Python 3.11 or 3.12, but $(PYTHON) is $$version; name one: make setup PYTHON=/path/to/python3.12" >&2; \
		exit 2;; esac
	@$(PYTHON) -m venv $(VENV)

# torch goes first and alone, so that its pin, and the index it comes from, are settled before anything else asks for it
$(RUN_STAMP): pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing tera-mind into $(VENV): about 1.5 GB, some minutes, once"
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@$(PIP) -e .
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt $(RUN_STAMP)
	@echo "installing the development tools into $(VENV)"
	@$(PIP) -e '.[dev]'
	@touch $@
