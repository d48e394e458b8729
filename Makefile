# Everything a developer or a user of the source tree does. `make` alone prints this help.
.DEFAULT_GOAL := help
SHELL := /bin/bash -o pipefail
PYTHON ?= python3
# How many tests with processes of their own run at once.
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
# The machine's own Python must be found also once .venv is there: its packages are what OFFLINE=1 builds on.
MACHINE_PATH := $(subst $(CURDIR)/$(BIN):,,$(PATH))
export PATH := $(CURDIR)/$(BIN):$(PATH)
STAMP := $(VENV)/.ready
SOURCES_OF_BUILD := pyproject.toml CMakeLists.txt constraints.txt proto/vrambroker/v1/broker.proto native/CMakeLists.txt \
  $(wildcard native/src/* native/preload/* native/include/vrambroker/* deploy/systemd/*)
# OFFLINE=1: what this machine's Python already has, and the wheels in .wheels/, which lie only where there is no network.
ifndef OFFLINE
OFFLINE := $(wildcard .wheels)
endif
# What a machine needs on top where there is a GPU: `make demo` runs on it.
GPU := $(wildcard /dev/nvidiactl)
EXTRAS := broker demo top dev$(if $(GPU), cuda)
ifdef OFFLINE
PIP := $(PY) -m pip install -q --no-index --find-links .wheels
else
PIP := $(PY) -m pip install -q -c constraints.txt
endif

.PHONY: help setup demo test check format lint types layering unit sim bench native-test test-process test-gpu pictures clean

help: ## print this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(STAMP) ## make the environment in .venv (the other targets call it)

$(VENV)/.tools: pyproject.toml constraints.txt
	@echo "setup: environment"
	@test -x $(PY) || PATH="$(MACHINE_PATH)" $(PYTHON) -m venv $(VENV)
ifdef OFFLINE
	@PATH="$(MACHINE_PATH)" $(PYTHON) -c 'import site; print("\n".join(site.getsitepackages()))' > "$$($(PY) -c 'import site; print(site.getsitepackages()[0])')/machine.pth"
	@$(PIP) --no-deps $$(ls .wheels/*.whl 2>/dev/null) || true
else
	@$(PIP) --upgrade pip
	@$(PIP) torch==$$(sed -n 's/^torch==//p' constraints.txt)
	@$(PIP) scikit-build-core cmake ninja $$($(PY) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; print(*(f"{d!r}" for n in "$(EXTRAS)".split() for d in p[n] if not d.startswith("vrambroker")))' | tr -d "'")
endif
	@touch $@

$(STAMP): $(VENV)/.tools $(SOURCES_OF_BUILD)
	@echo "setup: building vrambroker"
	@$(PIP) --no-build-isolation --no-deps -e .
	@generated=$$(ls -d build/py3-none-*/generated | head -1) && mkdir -p .typing/vrambroker && ln -sfn "../../$$generated/vrambroker/v1" .typing/vrambroker/v1
	@touch $@

demo: setup ## the main job: real RL with a trainer and a rollout engine that don't fit together
	@mkdir -p out
	$(BIN)/broker demo --report out/demo.json

check: format lint types layering unit ## format, lint, types, layering, unit, property, simulation smoke

format: setup ## check the formatting
	$(BIN)/ruff format --check .

lint: setup ## lint
	$(BIN)/ruff check .

types: setup ## mypy and pyright, strict
	$(BIN)/mypy
	$(BIN)/pyright

layering: setup ## who may import whom
	$(BIN)/lint-imports

unit: setup ## unit, property and simulation tests
	$(BIN)/pytest -q tests/unit tests/property tests/simulation tests/tidy

test: check native-test ## everything that runs without a GPU
	$(BIN)/pytest -q -n $(JOBS) --dist worksteal tests/contract tests/process

native-test: setup ## the C++ tests, plain and under ASan and UBSan
	@cmake -S native -B build/native -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo >/dev/null && cmake --build build/native && ctest --test-dir build/native --output-on-failure
	@cmake -S native -B build/native-asan -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DVRB_SANITIZE=address,undefined >/dev/null && cmake --build build/native-asan && ctest --test-dir build/native-asan --output-on-failure

test-gpu: ## build and test on this machine's GPU, offline; results in out/ (skipped where there is none)
	@tests/gpu/run_all.sh

sim: setup ## one run of the simulator: make sim SEED=7 (or many: SEED=1 COUNT=500)
	$(PY) tests/simulation/run.py --seed $(or $(SEED),1) --count $(or $(COUNT),1)

bench: setup ## measure on this machine, and on its GPU if there is one; results under tests/bench/results
	$(PY) tests/bench/host.py
	$(PY) tests/bench/core_growth.py
	$(PY) tests/bench/fragmentation.py
	@if nvidia-smi -L >/dev/null 2>&1; then for part in gpu gpu_swap gpu_arbiter gpu_process; do $(PY) tests/bench/$$part.py || failed=1; done; $(PY) tests/bench/gpu_process.py default || failed=1; [ -z "$$failed" ]; else echo "SKIPPED: nvidia-smi shows no GPU on this machine, so nothing was measured on one"; fi
	$(PY) tests/bench/readme_table.py

pictures: setup ## draw the two pictures of docs/timeline.md again
	PYTHONPATH=tests/bench $(PY) tests/bench/awake.py

clean: ## remove what was built
	rm -rf build out $(VENV) .typing/vrambroker/v1
