# Two commands matter: `make demo` and `make test`. Both build what they need from the locked versions.
# `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
DEMO_FLAGS ?=
PYTEST_FLAGS ?=
# Processes that share the tests; each compiles on its own, so more than the cores do not help.
JOBS ?= 2

BIN := $(VENV)/bin
# One lock per jax that is supported: jax 0.10.2 is the last one for Python 3.11.
# An interpreter that is missing or too old leaves VERSION empty; `env` then says so in one line.
VERSION := $(shell $(PYTHON) -c 'import sys; v = sys.version_info; print("%d.%d" % v[:2] if v >= (3, 11) else "")' 2>/dev/null)
LOCK := .ci/lock-$(if $(filter 3.11,$(VERSION)),py311,py312).txt
# A stamp names the Python it was made with, so a changed PYTHON remakes the environment.
# In the environment itself, JAX would look for a TPU; it is for jax's own version of libtpu.
TPU := .tpu/$(VERSION)
# The same for JAX's CUDA plugin; of ptxas any release does that knows the plugin's version of PTX.
CUDA := .cuda/$(VERSION)
NVCC := nvidia-cuda-nvcc==13.5.37
STAMP := $(VENV)/.installed-$(or $(VERSION),none)
# Quiet and deterministic: no "new release of pip" notice.
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env tpu cuda demo test nightly lint format lock check-python clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 \t\2/p' Makefile | expand -t 18
	@echo 'Variables: PYTHON=python3.13  VENV=.venv  DEMO_FLAGS="--config.steps=100"  PYTEST_FLAGS="-k router"  JOBS=2'

demo: env ## train a small V-MoE on handwritten digits, evaluate it, print the result
	$(BIN)/vmoe demo $(DEMO_FLAGS)

test: env ## run the tests (all but those marked nightly)
	$(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder $(PYTEST_FLAGS)

nightly: env ## run every test, with many more random examples
	$(BIN)/python -m pytest -m "nightly or not nightly" --hypothesis-profile=nightly --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder $(PYTEST_FLAGS)

lint: env ## ruff (lint and format) and mypy strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: env ## let ruff mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

env: $(STAMP) ## create the environment from the locked versions

# --no-deps: the lock is the whole answer. --no-build-isolation: the build backend is in the lock too.
$(STAMP): $(LOCK) pyproject.toml | check-python
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --requirement $(LOCK)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

tpu: env ## install libtpu beside the environment, to compile for TPUs without one
	@test -d $(TPU)/libtpu || { echo "installing libtpu into $(TPU)"; \
	$(BIN)/python -m pip install --quiet --no-deps --target $(TPU).tmp \
	  "$$($(BIN)/python -c 'import importlib.metadata as m; print(next(r for r in m.requires("jax") if r.startswith("libtpu")).partition(";")[0])')" \
	&& mkdir -p $(dir $(TPU)) && mv $(TPU).tmp $(TPU); }

cuda: env ## install JAX's CUDA plugin beside the environment, to compile for GPUs without one
	@test -d $(CUDA)/jax_plugins || { echo "installing JAX's CUDA plugin and ptxas into $(CUDA)"; \
	version=$$($(BIN)/python -c 'import jax; print(jax.__version__)') \
	&& $(BIN)/python -m pip install --quiet --no-deps --target $(CUDA).tmp \
	  "jax-cuda13-plugin==$$version" "jax-cuda13-pjrt==$$version" $(NVCC) \
	&& mkdir -p $(dir $(CUDA)) && mv $(CUDA).tmp $(CUDA); }

check-python:
	@test -n "$(VERSION)" || { echo "error: $(PYTHON) is missing or older than 3.11 ($$($(PYTHON) --version 2>&1)); install Python 3.11 or newer, or name one: make PYTHON=python3.13" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot create environments (no ensurepip); install it, on Debian and Ubuntu: apt-get install python$(VERSION)-venv" >&2; exit 1; }

# Resolves afresh, so the newest versions pyproject.toml allows are what gets locked. Run it once per lock:
# `make lock PYTHON=python3.11` and `make lock PYTHON=python3.13`, then `make test` with each.
lock: check-python ## write the lock file for PYTHON again, from pyproject.toml
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	$(PYTHON) -m venv "$$tmp/venv"; \
	"$$tmp/venv/bin/python" -m pip install --quiet '.[dev]'; \
	{ echo "# Exact versions for make; written by \`make lock\` with Python $(VERSION). Do not edit."; \
	  "$$tmp/venv/bin/python" -m pip freeze --exclude moegen; } > $(LOCK).tmp; \
	mv $(LOCK).tmp $(LOCK); echo "wrote $(LOCK)"

clean: ## remove the environment and what the tools leave behind
	rm -rf $(VENV) .tpu .cuda build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
