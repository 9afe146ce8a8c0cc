# Each target makes the virtual environment that it needs; nothing has to be installed by hand.
PYTHON ?= python3
PIP_INSTALL = bin/python -m pip install --quiet --disable-pip-version-check --constraint tools/constraints.txt

.PHONY: quickstart test lint types check bench clean

quickstart: .venv/quickstart/installed  ## the main job on real images, with a result to look at
	.venv/quickstart/bin/python examples/quickstart.py

test: .venv/dev/installed  ## the tests
	.venv/dev/bin/python -m pytest

lint: .venv/dev/installed
	.venv/dev/bin/ruff check
	.venv/dev/bin/ruff format --check

types: .venv/dev/installed
	.venv/dev/bin/pyright

check: lint types  ## lint, format and types

bench: .venv/dev/installed  ## figures, with peak memory beside them
	.venv/dev/bin/python tools/bench/bench_manifest.py
	.venv/dev/bin/python tools/bench/bench_samplers.py
	.venv/dev/bin/python tools/bench/bench_all_triplets.py

.venv/quickstart/installed: pyproject.toml tools/constraints.txt
	$(PYTHON) -m venv .venv/quickstart
	.venv/quickstart/$(PIP_INSTALL) --editable .
	touch $@

.venv/dev/installed: pyproject.toml tools/constraints.txt
	$(PYTHON) -m venv .venv/dev
	.venv/dev/$(PIP_INSTALL) --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv out .pytest_cache .ruff_cache .hypothesis
