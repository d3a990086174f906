# `make demo` and `make test` install everything they need into .venv, but only if something has changed.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

PYTEST := $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder
# One process for each core, because tiny models gain nothing from a second thread. tests/conftest.py runs files with slow
# tests first.
TYPED := $(shell find pefttools tests benchmarks -name __pycache__ -prune -o \( -name '*.py' -o -type d \) -print)

.PHONY: demo check static fast test test-oldest speed lint format docs clean

demo: .venv/current
	$(BIN)/pefttools train question-type-lora --out $(DEMO) --resume
	test -d $(DEMO)/export/merged || $(BIN)/pefttools export $(DEMO) --to merged
	$(BIN)/pefttools predict $(DEMO) --text "Who painted the ceiling of the Sistine Chapel ?" --text "How many moons does Mars have ?"

# Run this after every change: all of `make lint`, and at the same time the tests that are not marked slow. These include the
# contracts of all strategies and objectives on one family of models, of tasks, optimizers and regularizers, and one run with
# LoRA. Only `make test` runs the others: other families, runs of other strategies, and all tests that start processes,
# resume, export, measure the support matrix, or compare methods.
check: .venv/dev
	@$(MAKE) --no-print-directory --keep-going -j2 static fast

static: .venv/dev .venv/types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# pyright has no cache, so it is run again only after a file, a setting or a package has changed.
.venv/types: $(TYPED) pyproject.toml constraints.txt .venv/dev
	$(BIN)/pyright
	touch $@

fast: .venv/dev
	$(PYTEST) -m "not slow"

test: .venv/dev
	$(PYTEST)

# The fast tests, then whole runs, with the oldest versions that pyproject.toml declares of the libraries that training
# stands on. These warn about torch.jit under a newer torch and about adapters in memory, and take another padding token
# from a GGUF file without one.
OLDEST := OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -W "ignore:\`torch.jit:DeprecationWarning" \
	-W "ignore:Could not find a config file in  -:UserWarning" \
	--deselect tests/test_base_loading.py::test_a_gguf_base_is_dequantized_once
test-oldest: .venv-oldest/installed
	$(OLDEST) -m "not slow"
	$(OLDEST) -m slow tests/test_train.py tests/test_predict.py tests/test_extras.py

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -qq --disable-pip-version-check -c constraints-oldest.txt torch
	.venv-oldest/bin/python -m pip install -qq --disable-pip-version-check -c constraints-oldest.txt -e '.[dev]'
	touch $@

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

# Both languages of the documentation, in site/. A warning is an error, and all links are checked; nothing but the package
# index needs a network.
docs: .venv/docs
	$(BIN)/sphinx-build -qW --keep-going -j auto -c docs -d build/doctrees/en . site
	$(BIN)/sphinx-build -qW --keep-going -j auto -d build/doctrees/zh docs/zh site/zh
	$(BIN)/python docs/generator/checked_links.py site
	@echo "open site/index.html"

clean:
	rm -rf .venv .venv-oldest runs build site

# torch is installed first and alone, so that no other package installs a CUDA build.
.venv/current: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt pip
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[all]'
	touch $@

.venv/dev: .venv/current
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.venv/docs: .venv/current
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@
