# `make demo` and `make test` set up everything they need in .venv; nothing is installed again when it is current.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

.PHONY: demo test speed lint format clean

demo: .venv/current
	$(BIN)/pefttools train question-type-lora --out $(DEMO) --resume
	test -d $(DEMO)/export/merged || $(BIN)/pefttools export $(DEMO) --to merged
	$(BIN)/pefttools predict $(DEMO) --text "Who painted the ceiling of the Sistine Chapel ?" --text "How many moons does Mars have ?"

test: .venv/dev
	$(BIN)/pytest -n auto --dist loadfile  # a process a core: tiny models gain nothing from a second thread

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
