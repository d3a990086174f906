# `make demo` and `make test` set up everything they need in .venv; nothing is installed again when it is current.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

PYTEST := $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder
# A process a core: tiny models gain nothing from a second thread. tests/conftest.py puts the files with slow tests first.
TYPED := $(shell find pefttools tests benchmarks -name __pycache__ -prune -o \( -name '*.py' -o -type d \) -print)

.PHONY: demo check static fast test speed lint format clean

demo: .venv/current
	$(BIN)/pefttools train question-type-lora --out $(DEMO) --resume
	test -d $(DEMO)/export/merged || $(BIN)/pefttools export $(DEMO) --to merged
	$(BIN)/pefttools predict $(DEMO) --text "Who painted the ceiling of the Sistine Chapel ?" --text "How many moons does Mars have ?"

# After every change: all of `make lint`, and beside it the tests that are not marked slow. Among them are the contract of
# every strategy and every objective on one family of models, of tasks, optimizers and regularizers, and one run by LoRA.
# Only `make test` runs the rest: other families, runs of the other strategies, every test that starts processes, resumes,
# exports, measures the support matrix, or compares methods.
check: .venv/dev
	@$(MAKE) --no-print-directory --keep-going -j2 static fast

static: .venv/dev .venv/types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# pyright remembers nothing: it is run again only after a file, a setting or a package has changed.
.venv/types: $(TYPED) pyproject.toml constraints.txt .venv/dev
	$(BIN)/pyright
	touch $@

fast: .venv/dev
	$(PYTEST) -m "not slow"

test: .venv/dev
	$(PYTEST)

speed: .venv/current
	$(BIN)/python benchmarks/speed

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs

# torch comes first and by itself: with it in place no other package asks for a CUDA build.
.venv/current: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt pip
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/dev: .venv/current
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
