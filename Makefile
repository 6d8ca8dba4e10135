# Two commands for a newcomer: `make demo` and `make test`. They share `make setup`; all may be run again at any time.
PYTHON ?= python3
BIN := .venv/bin
PINS := $(CURDIR)/constraints.txt
PIP := PIP_CONSTRAINT=$(PINS) PIP_BUILD_CONSTRAINT=$(PINS) $(BIN)/python -m pip install --quiet
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(shell find src -name '*.cpp' -o -name '*.h')

.PHONY: setup demo check test test-all check-native bench
setup: .venv/ready

.venv/ready: $(SOURCES)
	$(PYTHON) -m venv .venv && $(PIP) --upgrade pip && $(PIP) torch==2.13.0
	$(PIP) -e '.[dev]' && touch $@

demo: setup
	@$(BIN)/python examples/demo.py

check: setup
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports
	$(BIN)/python -m pytest tests/unit/test_mirror.py tests/unit/test_repository.py

test: setup
	$(BIN)/python -m pytest -m "not slow"

test-all: setup
	$(BIN)/python -m pytest

check-native: setup
	bash tests/check_native.sh

bench: setup
	$(BIN)/outpace bench -o outpace-bench && $(BIN)/outpace bench growth -o outpace-bench
