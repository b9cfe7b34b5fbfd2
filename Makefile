# `make help` lists the targets. They need Python 3.11 or later, and install the rest into .venv.

PYTHON ?= python3
CONFIG ?= digits
ARGS ?=
VENV := .venv/bin

.PHONY: help train test slow check lint types imports bench sweep mutations

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

train: .venv/installed  ## train configs/$(CONFIG).py, by default digits: make train CONFIG=mnist_cpu ARGS="--config.seed=1"
	$(VENV)/python -m mcn_jax.main --config=configs/$(CONFIG).py --workdir=runs/$(CONFIG) $(ARGS)

test: .venv/installed .venv/web  ## run the fast tests on all cores: tens of minutes on two
	$(VENV)/python -m pytest -q -n auto

slow: .venv/installed .venv/web  ## run the slow tests: tens of minutes
	$(VENV)/python -m pytest -q -m slow -n auto

check: lint types imports  ## check style, format, types and the order of the packages

lint: .venv/installed
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .

types: .venv/installed
	$(VENV)/mypy

imports: .venv/installed
	$(VENV)/lint-imports

bench: .venv/installed  ## run the benchmarks: tens of minutes on an idle machine
	$(VENV)/python -m pip install -q --disable-pip-version-check -r benchmarks/requirements.txt
	$(VENV)/python benchmarks/mcconv.py
	$(VENV)/python benchmarks/convolution.py
	$(VENV)/python benchmarks/plane_signs.py
	$(VENV)/python benchmarks/step.py
	$(VENV)/python benchmarks/roofline.py
	$(VENV)/python benchmarks/inference.py
	$(VENV)/python benchmarks/c_inference.py
	$(VENV)/python benchmarks/packing.py
	$(VENV)/python benchmarks/input.py
	$(VENV)/python benchmarks/spectral.py

sweep: .venv/installed  ## sweep theta and lambda on digits, a few minutes; files in runs/sweep
	$(VENV)/python -m pip install -q --disable-pip-version-check -r launch/requirements.txt
	$(VENV)/python launch/sweep.py --config=configs/digits.py --out=runs/sweep \
		--grid loss.theta=0,1e-2 --grid loss.center_loss_weight=0,1e-3 --seeds=0,1 -- \
		--config.model.widths=4,8 --config.model.head=dense --config.model.dense_features=32 \
		--config.model.dropout_rate=0.2 \
		--config.optimizer.learning_rate=0.05 --config.optimizer.warmup_epochs=1 \
		--config.num_epochs=15 --config.binarize.start_epoch=4 $(ARGS)

mutations: .venv/installed .venv/web  ## seed faults into the code and check that the tests notice: an hour
	$(VENV)/python tests/mutation/check.py

.venv/installed: requirements.txt pyproject.toml setup.py mcn_jax/ops/native_build.py $(wildcard mcn_jax/ops/cpp/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "mcn_jax needs Python 3.11 or later; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(VENV)/python -m pip install -q --disable-pip-version-check -r requirements.txt
	$(VENV)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

.venv/web: requirements-web.txt .venv/installed
	$(VENV)/python -m pip install -q --disable-pip-version-check -r requirements-web.txt
	@touch $@
