# Two commands for a newcomer: `make demo` and `make test`. Both may be run again at any time.
PYTHON ?= python3
BIN := .venv/bin
PINS := $(CURDIR)/constraints.txt
PIP := PIP_CONSTRAINT=$(PINS) PIP_BUILD_CONSTRAINT=$(PINS) $(BIN)/python -m pip install --quiet
# Tests in a process per core, each of one thread but for what a test asks for itself.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(shell find src -name '*.cpp' -o -name '*.h')

.PHONY: setup dev demo check test test-all check-native check-wheel bench
setup: .venv/ready
dev: .venv/dev

.venv/ready: $(SOURCES)
	$(PYTHON) -m venv .venv && $(PIP) --upgrade pip
	$(PIP) -e . && touch $@

# PyTorch first and by its version: other versions pull gigabytes of GPU libraries.
.venv/dev: .venv/ready
	$(PIP) torch==2.13.0
	$(PIP) --group dev && touch $@

demo: setup
	@$(BIN)/python examples/demo.py

check: dev
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports
	$(BIN)/python -m pytest tests/unit/test_mirror.py tests/unit/test_repository.py

test: dev
	$(PYTEST) -m "not slow"

test-all: dev
	$(PYTEST)

check-native: dev
	bash tests/check_native.sh

check-wheel: setup
	bash tests/check_wheel.sh

bench: dev
	$(BIN)/outpace bench -o outpace-bench && $(BIN)/outpace bench growth -o outpace-bench
