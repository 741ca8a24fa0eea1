# `make demo` and `make test` create the environment in .venv when it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: bench demo test test-fast lint docs lowest train-digits
.DEFAULT_GOAL := demo
CIFAR10 := --model cifar10 --data cifar10-samples --eps 4/255 --images 8 --steps 10 \
	--picture demo-cifar10.png

$(BIN)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	@echo "Installing the dependencies into $(VENV): about 6 GB and a few minutes."
	$(BIN)/pip install --quiet --editable . --group dev
	@touch $@

# Natural images, then digits.
demo: $(BIN)/.ready
	$(BIN)/python -m evaluation.demo $(CIFAR10)
	$(BIN)/python -m evaluation.demo

test: $(BIN)/.ready
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# What is not marked slow.
test-fast: $(BIN)/.ready
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not slow"

# Ratios to published code, about ten minutes of one core.
bench: $(BIN)/.ready
	$(BIN)/python -m benchmarks.ratios

docs: $(BIN)/.ready
	$(BIN)/mkdocs build --strict

lint: $(BIN)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The oldest versions that pyproject.toml allows; needs uv and an empty VENV.
lowest:
	uv venv --clear $(VENV)
	uv pip compile --quiet --python $(BIN)/python --resolution lowest-direct --group dev \
		--output-file $(VENV)/lowest.txt pyproject.toml
	uv pip install --python $(BIN)/python --requirement $(VENV)/lowest.txt
	uv pip install --python $(BIN)/python --no-deps --editable .
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

train-digits: $(BIN)/.ready
	export PATH="$(abspath $(BIN)):$$PATH"; for recipe in digits digits-cnn digits-trades; do \
		bash recipes/$$recipe.sh || exit 1; done
