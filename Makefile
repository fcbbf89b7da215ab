# make train   train on the embedded data set, sample and score     (ARGS="--config.train.steps=100" adds arguments)
# make test    lint, types, architecture, tests                     (PYTEST_ARGS="-k sizes" narrows them)
# make test-fast  those that take little, for the edit loop
# make test-all   also those that only repeat
# make coverage   the same, and which lines they ran
# make lint    ruff, its format, mypy
# make format  rewrite the sources in the project's style
# make wheel   build wheel and source distribution into dist/ and try the wheel in an empty folder
# make site    build the documentation site into build/site; warnings are errors
# make docs    write docs/models.md
# make plans   compile every model for its TPU pod and write docs/plans.md (three quarters of an hour, no TPU needed)
# make layouts compile the same model under other layouts and write docs/layouts.md
# make notebook  execute docs/notebooks, with a small run of its own
# make clean   remove the virtual environment and caches; data and runs stay
#
# The first call makes .venv and installs what is needed, with the JAX build for the machine's accelerator.
# PYTHON=python3.12 chooses the interpreter, ACCELERATOR=cpu|gpu|tpu overrides what is detected.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help train test test-fast test-all coverage lint format notebook wheel site docs plans layouts clean

EXTRAS ?= test
ARGS ?=
PYTEST_ARGS ?=

# The first interpreter that runs and is new enough (a name on PATH may be a shim for one that is not installed).
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
ifndef PYTHON
PYTHON := $(shell for p in python3.12 python3.11 python3 python3.13 python; do \
	$$p -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && { echo $$p; exit; }; done; echo python3)
endif
ifndef ACCELERATOR
ACCELERATOR := $(shell if nvidia-smi -L >/dev/null 2>&1; then echo gpu; \
	elif ls /dev/accel0 >/dev/null 2>&1 || ls /dev/vfio/0 >/dev/null 2>&1; then echo tpu; else echo cpu; fi)
endif
comma := ,
ALL_EXTRAS := $(EXTRAS)$(addprefix $(comma),$(filter-out cpu,$(ACCELERATOR)))
BIN := .venv/bin
STAMP := .venv/.installed-$(subst $(comma),-,$(ALL_EXTRAS))

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

$(BIN)/pip:
	@$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		echo "ec_dit needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
		"Install one and name it: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		echo "'$(PYTHON)' cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv .venv

$(STAMP): setup.py | $(BIN)/pip
	@echo "Installing ec_dit[$(ALL_EXTRAS)] into .venv with $$($(BIN)/python --version) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(ALL_EXTRAS)]'
	@touch $@

train: $(STAMP)
	$(BIN)/python -m ec_dit.main --config=configs/shapes.py --workdir=runs/shapes $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup

test-fast: lint
	$(PYTEST) -m 'not slow and not exhaustive' $(PYTEST_ARGS)

test: lint
	$(PYTEST) -m 'not exhaustive' $(PYTEST_ARGS)

test-all: lint
	$(PYTEST) $(PYTEST_ARGS)

coverage: lint
	$(PYTEST) --cov --cov-config=pyproject.toml --cov-report=term-missing $(PYTEST_ARGS)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebook: $(STAMP)
	@$(BIN)/python -c 'import nbclient, ipykernel, matplotlib' 2>/dev/null || { echo "Installing what executes notebooks ..."; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[notebook]'; }
	$(BIN)/python -m pytest tests/test_notebook.py $(PYTEST_ARGS)

wheel: $(STAMP)
	.ci/wheel

site: $(STAMP)
	@$(BIN)/python -c 'import material, mkdocstrings' 2>/dev/null || { echo "Installing what builds the site ..."; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'; }
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

plans layouts: $(STAMP)
	@$(BIN)/python -c 'import libtpu' 2>/dev/null || { echo "Installing the TPU's compiler ..."; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tpu]'; }
	$(BIN)/python benchmarks/$@.py $(ARGS)

docs: $(STAMP)
	$(BIN)/python -m ec_dit.models.sizes --markdown > docs/models.new && mv docs/models.new docs/models.md

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
