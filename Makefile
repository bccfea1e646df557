# Everything a developer does with this project. Needs only Python 3.11 or newer, pip, make and gcc.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Most tests wait for processes, so more workers than cores.
WORKERS ?= 4
NEVER_LOADED := /(_dynamo|_export|_inductor|distributed|onnx|testing|tests|torchgen|triton|sympy|mpmath|networkx|fontTools|mypyc?|pip|setuptools)/

# Where the root of a rented box and SkyPilot's environment are kept: 2 GB, on a file system that overlayfs can use.
LAUNCH_ROOTS ?= /var/tmp/wan-train-launch

.PHONY: help setup rehearse test test-all test-fast test-launch lint format docs bench chaos chaos-endings \
    chaos-provision chaos-launch launch-roots clean

help:
	@echo "make rehearse   the whole pipeline on the embedded tiny trainer, on this machine's CPU"
	@echo "make test       linters, types, import layers and all tests"
	@echo "make test-fast  the tests that start no programs"
	@echo "make lint       only the linters"
	@echo "make docs       the documents that are generated: docs/flags.md, docs/json-output.md"
	@echo "make bench      the benchmarks, as ratios"
	@echo "make chaos      CHAOS_RUNS (100) rehearsals with kill -9 at random moments"
	@echo "make chaos-endings  CHAOS_RUNS (100) ends of a box, with kill -9 and services that fail"
	@echo "make chaos-provision  CHAOS_KILLS (50) kill -9 of provisions of a bare box, until it is ready"
	@echo "make test-launch    launches with the real SkyPilot to boxes on this machine; needs root, takes minutes"
	@echo "make chaos-launch   CHAOS_RUNS (50) launches with random faults and kill -9; needs root"
	@echo "make clean      remove the environment and everything generated"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt \
	    --editable '.[rehearsal,dev]'
	# On every core, where pip compiles on one, and without the two thirds that nothing loads; some packages hold
	# templates that are no Python. Then what torch loads of them, also where containers forbid to keep what is compiled.
	$(BIN)/python -m compileall -qq -j 0 -x '$(NEVER_LOADED)' $(VENV)/lib || true
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import accelerate.commands.launch'
	$(BIN)/python -m pytest --collect-only --quiet >/dev/null || true # else each test process compiles all tests
	touch $@

rehearse: setup
	$(BIN)/wan-train rehearse --runs-dir rehearsal

# The linters use one core, so that the tests need not wait for them.
test: setup
	$(MAKE) --no-print-directory --jobs 2 lint test-all

test-all: setup
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

test-fast: setup
	$(BIN)/python -m pytest --quiet --numprocesses $(WORKERS) -m "not process" tests/unit tests/contract tests/golden

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck scripts/*.sh tests/musubi/setup.sh tests/launch/prepare.sh \
	    tests/support/launch_box/box_setup.sh .ci/run

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup
	$(BIN)/python docs/generate_json.py
	$(BIN)/python docs/generate_flags.py

bench: setup
	$(BIN)/python benchmarks/run.py

chaos: setup
	$(BIN)/python benchmarks/chaos.py

chaos-endings: setup
	$(BIN)/python benchmarks/chaos_endings.py

chaos-provision: setup
	$(BIN)/python benchmarks/provision_chaos.py

launch-roots: setup
	PYTHON=$(BIN)/python tests/launch/prepare.sh $(LAUNCH_ROOTS)

test-launch: launch-roots
	WAN_TRAIN_TEST_LAUNCH=$(LAUNCH_ROOTS) $(BIN)/python -m pytest tests/launch

chaos-launch: launch-roots
	$(BIN)/python benchmarks/chaos_launch.py $(LAUNCH_ROOTS)

clean:
	rm -rf $(VENV) rehearsal build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
