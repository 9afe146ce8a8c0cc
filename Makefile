# Each target makes the virtual environment that it needs; nothing has to be installed by hand.
PYTHON ?= python3
PAGE = --markdown tools/bench/RESULTS.md
PIP_INSTALL = bin/python -m pip install --quiet --disable-pip-version-check --constraint tools/constraints.txt

.PHONY: quickstart test lint types graph docs check bench bench-gpu clean

quickstart: .venv/quickstart/installed  ## the main job on real images, with a result to look at
	.venv/quickstart/bin/python examples/quickstart.py

test: .venv/dev/installed  ## the tests, a process for each core
	OMP_NUM_THREADS=1 .venv/dev/bin/python -m pytest --numprocesses logical --dist worksteal

lint: .venv/dev/installed
	.venv/dev/bin/ruff check
	.venv/dev/bin/ruff format --check

types: .venv/dev/installed  ## its wheel brings the checker and node along, so nothing else is fetched
	.venv/dev/bin/basedpyright --pythonpath .venv/dev/bin/python

graph: .venv/dev/installed  ## docs/architecture.md shows the imports as they are, and its laws hold
	.venv/dev/bin/python tools/import_graph.py --check

docs: .venv/dev/installed  ## the documentation, into out/site
	NO_MKDOCS_2_WARNING=1 .venv/dev/bin/mkdocs build --quiet --strict

check: lint types graph docs  ## lint, format, types, the import graph and the documentation

bench: .venv/bench/installed  ## figures beside the peers'; TREE=<alphabet/character/*.png> adds the learning
	.venv/bench/bin/python tools/bench/bench_manifest.py
	.venv/bench/bin/python tools/bench/bench_samplers.py
	.venv/bench/bin/python tools/bench/bench_deep_ranking.py
	.venv/bench/bin/python tools/bench/bench_dedup.py $(if $(TREE),"$(TREE)")
	.venv/bench/bin/python tools/bench/bench_large_manifest.py $(PAGE)
	.venv/bench/bin/python tools/bench/bench_shards.py $(PAGE)
	.venv/bench/bin/python tools/bench/bench_yield.py $(PAGE)
	.venv/bench/bin/python -m pytest -m peers
	.venv/bench/bin/python tools/bench/bench_definitions.py $(PAGE)
	.venv/bench/bin/python tools/bench/bench_peers.py $(PAGE)
	.venv/bench/bin/python tools/bench/bench_card.py $(PAGE)
	.venv/bench/bin/python tools/bench/bench_metrics.py $(PAGE)
	.venv/bench/bin/python tools/bench/bench_nearest.py $(PAGE)
	.venv/bench/bin/python tools/bench/bench_offline.py $(PAGE)
	.venv/bench/bin/python tools/bench/bench_wrong_labels.py $(if $(TREE),"$(TREE)") $(PAGE)
	$(if $(TREE),.venv/bench/bin/python tools/bench/bench_learning.py "$(TREE)" $(PAGE))
	$(if $(TREE),.venv/bench/bin/python tools/bench/bench_batches.py "$(TREE)" $(PAGE))
	$(if $(TREE),.venv/bench/bin/python tools/bench/bench_remining.py "$(TREE)" $(PAGE))

bench-gpu: .venv/bench/installed  ## the same figures on a CUDA card, with host reads; it needs a card
	.venv/bench/bin/python tools/bench/bench_gpu.py $(PAGE)

.venv/quickstart/installed: pyproject.toml tools/constraints.txt
	$(PYTHON) -m venv .venv/quickstart
	.venv/quickstart/$(PIP_INSTALL) --editable .
	touch $@

.venv/dev/installed: pyproject.toml tools/constraints.txt
	$(PYTHON) -m venv .venv/dev
	.venv/dev/$(PIP_INSTALL) --editable '.[dev]'
	touch $@

.venv/bench/installed: pyproject.toml tools/constraints.txt
	$(PYTHON) -m venv .venv/bench
	.venv/bench/$(PIP_INSTALL) --editable '.[bench]'
	.venv/bench/$(PIP_INSTALL) --no-deps open-metric-learning==4.0.0
	touch $@

clean:
	rm -rf .venv out .pytest_cache .ruff_cache .hypothesis
