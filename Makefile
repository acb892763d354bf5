# make train     set up .venv and train FastTD3 with SEM on the default task, about five minutes on two cores
# make test      set up .venv and run every test
# make test-all  the same with mjlab and MuJoCo Playground, which are large
# make lint      format check, linter, type checker
# make help      this list

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# More flags for the training run, e.g.  make train ARGS="--seed 2 --no-sem-critic"
ARGS   ?=
# Tests in so many processes, each file of them in one
JOBS   ?= 2

.PHONY: help train test test-all lint format clean

help:
	@sed -n '/^#/!q; s/^# //p' $(firstword $(MAKEFILE_LIST))

train: $(READY)
	$(BIN)/python agents/fasttd3.py --sem $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

test-all: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --constraint constraints-extra.txt --editable '.[dev,mjlab,playground]'
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache

# torch goes first, at the pinned version: a looser request from another package would fetch a different build of it.
# What is C++ would be built when it is first needed; here a first run need not wait for it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "semrl needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m networks.native
	touch $(READY)
