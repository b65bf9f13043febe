# Two commands to remember: `make demo` (the whole road on data that is already here) and `make test`.
# Both set up .venv first; on a fresh machine that needs CPython >= 3.10 and its headers, gcc, g++, make, git and a
# package index.
# Another interpreter: `make setup PYTHON=python3.12`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup test faults demo lint sanitize gpu gpu-wheels format clean

# The first of these that is new enough; empty if none is.
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 10))'
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
  $$p $(NEW_ENOUGH) 2> /dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin

# A path in here must not leak another environment's packages into ours.
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export PYTHONUNBUFFERED := 1

# pip, always with our pins, without the lines that say nothing (errors and downloads stay).
NOISE := already satisfied|^Looking in|^Collecting|\.metadata|Using cached|^WARNING: Location .* is ignored
NOISE := $(NOISE)|: still running|: started$$|^ +(Preparing|Getting|Installing build|Checking if|Created wheel|Stored in|Attempting|Found existing|Uninstalling)|^Successfully built
# (Most modules are never imported; Python compiles the others then.)
INSTALL := $(BIN)/python -m pip install --no-compile --progress-bar off -c constraints.txt
SIFT := 2>&1 | { grep --line-buffered -vE '$(NOISE)' || true; }

help:
	@echo 'make demo    set up, then the whole road on text and images that are already here; ends with a table'
	@echo 'make test    set up, then all tests'
	@echo 'make setup   only .venv, with pinned packages and the compiled extension'
	@echo 'make faults  the long set of kills, hangs and full disks (10 to 17 minutes); ends with a table  FAULTS="--only saving"'
	@echo 'make sanitize  the C++ kernels under AddressSanitizer, UBSan and ThreadSanitizer'
	@echo 'make gpu     prove and measure everything on a GPU, in ten minutes, without a package index (docs/gpu.md)'
	@echo 'make lint    ruff and mypy      make format    let ruff rewrite      make clean    remove what make made'

setup: $(VENV)/.stamp

# A .venv is of one folder, as its scripts have the path in them, and of the interpreter that the command line names.
WHICH := -c 'import sys; print(sys.base_prefix, sys.version)'
OF_PYTHON := test "$$($(BIN)/python $(WHICH))" = "$$($(PYTHON) $(WHICH))"
FITS := test "$$(cat $(VENV)/.made-in)" = "$(CURDIR)" $(if $(findstring command line,$(origin PYTHON)),&& $(OF_PYTHON))
OTHER := $(if $(wildcard $(VENV)/.dependencies),$(shell { $(FITS); } 2> /dev/null || echo other))
.PHONY: other

$(VENV)/.dependencies: constraints.txt pyproject.toml $(OTHER)
	@test -w . || { echo 'setup: this folder cannot be written. Clone it elsewhere.' >&2; exit 1; }
	@test -n '$(PYTHON)' && $(PYTHON) $(NEW_ENOUGH) || { \
	  echo 'setup: CPython 3.10 or newer is needed. Name one: make setup PYTHON=/path/to/python3' >&2; exit 1; }
	@command -v $${CXX:-g++} > /dev/null || { \
	  echo 'setup: no C++ compiler. Install gcc and g++ (Debian: apt-get install build-essential).' >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig as s; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))' || { \
	  echo 'setup: $(PYTHON) has no Python.h. Install its headers (Debian: apt-get install python3-dev).' >&2; exit 1; }
	@echo '==> 1/4  $(VENV) and torch (the largest package)'
	@test -z '$(OTHER)' && $(BIN)/python -m pip --version &> /dev/null || $(PYTHON) -m venv --clear $(VENV)
	@echo "$(CURDIR)" > $(VENV)/.made-in
	@# torch alone and pinned: left to the others, the resolver may fetch gigabytes of a second one
	@$(INSTALL) torch numpy $(SIFT)
	@echo '==> 2/4  build tools'
	@$(INSTALL) setuptools wheel ninja pybind11 packaging psutil py-cpuinfo $(SIFT)
	@echo '==> 3/4  DeepSpeed (its compiled parts are made on demand)'
	@DS_BUILD_OPS=0 $(INSTALL) --no-build-isolation deepspeed $(SIFT)
	@touch $@

# Where the extension is not there any more, it is made again.
EXTENSION := $(or $(wildcard kernels/glomo_kernels/_cpu*.so),missing)
.PHONY: missing

$(VENV)/.stamp: $(VENV)/.dependencies setup.py kernels/build_cuda.py $(wildcard kernels/csrc/* kernels/csrc/cuda/*) \
    $(filter missing,$(EXTENSION))
	@echo '==> 4/4  glomo-dist, its compiled extension, and all other packages'
	@$(INSTALL) --no-build-isolation -e '.[dev]' $(SIFT)
	@$(BIN)/python kernels/build_cuda.py --check
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib/python*/site-packages/{torch,numpy,deepspeed} > /dev/null || true
	@touch $@
	@echo '==> ready: $(BIN)/glomo'

# Processes that share the tests; more than four would wait for the longest of files.
PROCESSES ?= $(shell n=$$(nproc 2> /dev/null || echo 2); echo $$((n < 4 ? n : 4)))
test: setup
	@$(BIN)/python -m pytest -n $(PROCESSES) --durations=10

faults: setup
	@$(BIN)/python tests/pretrain/faults.py $(FAULTS)

demo: setup
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash docs/demo.sh demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy kernels/glomo_kernels glomo_dist

sanitize: setup
	@$(BIN)/python kernels/sanitize.py

# With the machine's own Python where .venv is not: PARTS="tests bench" BUDGET=570 OUT=folder DRY=1
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU_PATH := PYTHONPATH="$(CURDIR):$(CURDIR)/kernels:$(CURDIR)/kernels/benchmarks"
gpu:
	@$(GPU_PATH) $(GPU_PYTHON) -m gpu $(PARTS) $(if $(DRY),--dry) $(if $(BUDGET),--seconds $(BUDGET)) \
	  $(if $(OUT),--out "$(OUT)")

# What `make gpu` needs where no package index is: wheels for its Python, to be taken along in wheels/.
gpu-wheels: setup
	@$(GPU_PATH) $(BIN)/python -m gpu.wheels wheels $(or $(GPU_PYTHON_VERSION),3.12)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	test ! -e demo/.made-by-demo || rm -rf demo
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find kernels glomo_dist tests \( -name __pycache__ -o -name '*.so' \) -prune -exec rm -rf {} +
