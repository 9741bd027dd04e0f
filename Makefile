# make repro: set up and run the pipeline.  make test: set up and run the tests.
PYTHON ?= python3
VENV ?= .venv
READY := $(VENV)/.ready
PINS := $(filter-out constraints/vllm.txt,$(wildcard constraints/*.txt))
AXE := tests/node_modules/axe-core/package.json
export PATH := $(abspath $(VENV))/bin:$(PATH)
# Some images forbid Python to keep what it compiles; every process would compile all libraries anew then.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup repro test test-gpu test-ray test-remotes test-sky test-vllm vllm drill check

setup: $(READY)

# The marker is newer than the files that decide what is installed, or set-up runs again.
# Modules are compiled when they are first imported, as a fifth of them ever are: that saves a minute.
$(READY): pyproject.toml $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; name it: make PYTHON=python3.12"; exit 2; }
	@echo "Setting up $(VENV): the pinned packages of constraints/ (minutes the first time)"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --no-compile --disable-pip-version-check $(PINS:%=--constraint %) --editable '.[dev]'
	@touch $@

repro: $(READY)
	@tunetrail repro
	@tunetrail gates || true

test: check $(AXE)
	@python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# Kills, flips, full disks and histories, for so long and from this seed: make drill SECONDS=600 SEED=7
SECONDS ?= 60
SEED ?= 0
drill: $(READY)
	@python tests/drills/drill.py --seed $(SEED) --seconds $(SECONDS)

# DVC remotes behind real servers, S3 included, whose packages take 80 MB.
test-remotes: $(READY)
	@pip install --quiet --disable-pip-version-check $(PINS:%=--constraint %) --editable '.[dev,s3,test-remotes]'
	@python -m pytest tests/ship/release/test_remotes.py -rs

# Ray clusters of this machine's processes, whose machines are killed at moments from so many seeds: make test-ray SEEDS=20
SEEDS ?= 5
test-ray: $(READY)
	@RAY_SEEDS=$(SEEDS) python -m pytest tests/core/test_cluster.py tests/near_duplicates/test_ray_tiles.py tests/prepare/clean/test_shards.py

# What only a CUDA card can show, in the Python that is there; the table goes to benchmarks/results/gpu_tests.md.
test-gpu:
	@$(or $(wildcard $(VENV)/bin/python),$(PYTHON)) -m pytest tests/gpu --confcutdir=tests/gpu --capture=no

# examples/gpu/gpu.yaml by SkyPilot's own parser, in an environment of its own: its pins are others.
test-sky:
	@test -x .venv-sky/bin/sky || $(PYTHON) -m venv .venv-sky
	@.venv-sky/bin/pip install --quiet --disable-pip-version-check skypilot==0.14.1
	@.venv-sky/bin/python -c 'import sky; print(sky.Task.from_yaml("examples/gpu/gpu.yaml"))'

# vLLM's CPU build in an environment of its own: it wants another transformers. TUNETRAIL_VLLM_PYTHON names it.
VLLM := $(abspath .venv-vllm)
vllm: $(VLLM)/.ready

$(VLLM)/.ready: constraints/vllm.txt
	@echo "Setting up .venv-vllm: vLLM for the CPU (3 GB, minutes)"
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement constraints/vllm.txt
	@touch $@

test-vllm: $(READY) $(VLLM)/.ready
	@TUNETRAIL_VLLM_PYTHON=$(VLLM)/bin/python python -m pytest tests/engines/test_vllm.py

# For the tests of pages; without npm they skip.
$(AXE): tests/package.json
	@! command -v npm >/dev/null || npm install --prefix tests --no-package-lock --no-audit --no-fund --silent
	@test ! -e $@ || touch $@

check: $(READY)
	@ruff check stages tests data benchmarks
	@ruff format --check --quiet stages tests data benchmarks
	@mypy
