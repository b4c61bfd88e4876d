# Every target sets up what it needs in .venv, once; a second run starts at once.
# PYTHON picks the interpreter: make demo PYTHON=python3.12
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all lint fix docs golden eval bench clean

demo: .venv/.installed
	$(BIN)/sora generate "a red ball bounces on the snow at sunset" --seed 1 -o demo.mp4 --force

test: .venv/.installed-dev
	$(BIN)/python -m pytest -m "not slow"

# The long matrices too: signals, power cuts, kills, replays; the slowest takes minutes by itself.
test-all: .venv/.installed-dev
	$(BIN)/python -m pytest --durations=15

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.installed-dev
	$(BIN)/python -m sora_cli.cli.reference docs/reference/cli.md

# The only way the golden files are ever rewritten: on purpose, and seen in the diff.
golden: .venv/.installed-dev
	$(BIN)/python -m pytest -m "slow or not slow" -k golden --write-golden

eval: .venv/.installed
	$(BIN)/python -m sora_cli.eval

# Beside diffusers, on this machine's CPU; `python -m sora_cli.bench --device cuda` for a GPU.
bench: .venv/.installed-dev
	$(BIN)/python -m sora_cli.bench --write docs/reference/speed.md

clean:
	rm -rf .venv build dist demo.mp4

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer was not found"; \
	  echo "hint: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e .
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[dev]'
	@touch .venv/.installed $@
