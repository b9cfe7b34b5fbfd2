# Two commands: `make train` and `make test`. Both need Python 3.11 or later and make, and install
# the rest into .venv.

PYTHON ?= python3
CONFIG ?= digits
ARGS ?=
VENV := .venv/bin

.PHONY: train test lint types slow bench sweep help

train: .venv/installed  ## train configs/$(CONFIG).py: make train CONFIG=mnist_cpu ARGS="--config.seed=1"
	$(VENV)/python -m mcn_jax.main --config=configs/$(CONFIG).py --workdir=runs/$(CONFIG) $(ARGS)

test: .venv/installed  ## the tests that take seconds
	$(VENV)/python -m pytest -q

slow: .venv/installed  ## the tests that take minutes
	$(VENV)/python -m pytest -q -m slow

bench: .venv/installed  ## the benchmarks: tens of minutes on a machine that does nothing else
	$(VENV)/python -m pip install -q --disable-pip-version-check -r benchmarks/requirements.txt
	$(VENV)/python benchmarks/mcconv.py
	$(VENV)/python benchmarks/step.py
	$(VENV)/python benchmarks/roofline.py
	$(VENV)/python benchmarks/inference.py
	$(VENV)/python benchmarks/packing.py
	$(VENV)/python benchmarks/input.py

sweep: .venv/installed  ## a sweep of theta and lambda on digits, a few minutes: files in runs/sweep
	$(VENV)/python -m pip install -q --disable-pip-version-check -r launch/requirements.txt
	$(VENV)/python launch/sweep.py --config=configs/digits.py --out=runs/sweep \
		--grid loss.theta=0,1e-2 --grid loss.center_loss_weight=0,1e-3 --seeds=0,1 -- \
		--config.model.widths=4,8 --config.model.dense_features=32 --config.model.dropout_rate=0.2 \
		--config.optimizer.learning_rate=0.05 --config.optimizer.warmup_epochs=1 \
		--config.num_epochs=15 --config.binarize.start_epoch=4 $(ARGS)

lint: .venv/installed  ## style, format and the order of the rooms
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/lint-imports

types: .venv/installed  ## types
	$(VENV)/mypy

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/'

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "mcn_jax needs Python 3.11 or later; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(VENV)/python -m pip install -q --disable-pip-version-check -r requirements.txt
	$(VENV)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@
