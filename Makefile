# make demo    build the demo's two data sets and show what came of it
# make test    all tests
# make check   format, lint, types, tests
# make ui      Dagster's UI on 127.0.0.1
# make bench-download   measure downloading, ours and img2dataset's (bench-download-quick: does it work?)
# make bench-tfds       measure making TFDS shards, ours and the official builder's (bench-tfds-quick: as above)
# make plan    what all of LAION-400M would take, from what was measured
# make bench-orchestration   measure Dagster itself with 100,000 shards (bench-orchestration-quick: as above)
# make cluster-test   a data set built on a Ray cluster of which a node is killed, in namespaces of this machine
# make crash-test, make crash-test-long   what docs/reliability.md promises, put to the test

# The first of these that is a Python this project runs on.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps
# A file's tests stay together, since they share what takes long to make, and the longest begin; each process
# has a TensorFlow.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test check ui slow cluster-test crash-test crash-test-long bench-download bench-download-quick bench-tfds bench-tfds-quick bench-orchestration bench-orchestration-quick plan lock clean

demo: $(VENV)/runtime
	$(BIN)/laion-assets demo

ui: $(VENV)/runtime
	@test -e laion.toml || test -n "$$LAION_SETTINGS" || test -e .demo/laion.toml || $(MAKE) demo
	@if test -e laion.toml || test -n "$$LAION_SETTINGS"; \
	then $(BIN)/laion-assets ui --workspace workspace.yaml; \
	else $(BIN)/laion-assets ui --workspace workspace.yaml --settings .demo/laion.toml; fi

test: $(VENV)/dev
	$(PYTEST)

# With the figures that they print.
slow: $(VENV)/dev
	$(PYTEST) -m slow -rP

# Some minutes, as root on Linux, with iproute2 and PostgreSQL. It prints what the lost node cost, and what Ray
# does. However it ends, all that it started ends with it.
cluster-test: $(VENV)/dev
	unshare --net --pid --mount-proc --fork --kill-child $(BIN)/python -m pytest -m cluster -s tests/cluster

# Some minutes, and some hours; both print their figures.
crash-test: $(VENV)/dev
	$(PYTEST) -m "slow or not slow" -rP tests/reliability

crash-test-long: $(VENV)/dev
	LAION_LONG=1 $(PYTEST) -m "slow or not slow" -rP --timeout 14400 tests/reliability

# Some twenty minutes; it needs Linux, openssl and nginx with its echo module, and says so.
bench-download: $(VENV)/runtime .venv-img2dataset/done
	$(BIN)/python -m benchmarks.download --output benchmarks/results/download.json

bench-download-quick: $(VENV)/runtime .venv-img2dataset/done
	$(BIN)/python -m benchmarks.download --quick

# Some minutes, on Linux.
bench-tfds: $(VENV)/runtime .venv-tfds-official/done
	$(BIN)/python -m benchmarks.tfds --output benchmarks/results/tfds.json

bench-tfds-quick: $(VENV)/runtime .venv-tfds-official/done
	$(BIN)/python -m benchmarks.tfds --quick

# Hours, and some 10 GB of disk, on Linux; with PostgreSQL where it is installed.
bench-orchestration: $(VENV)/dev
	$(BIN)/python -m benchmarks.orchestration --output benchmarks/results/orchestration.json

bench-orchestration-quick: $(VENV)/dev
	$(BIN)/python -m benchmarks.orchestration --quick

plan: $(VENV)/runtime
	$(BIN)/python -m benchmarks.plan --output benchmarks/results/plan.json

# What we are measured beside, apart, since its versions of numpy, pandas, OpenCV or TensorFlow are its own.
.venv-%/done: requirements/%.txt | $(VENV)/bin/python
	@$(BIN)/python -m venv .venv-$*
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	@touch $@

check: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

# The lock files are complete, so pip need not resolve anything (--no-deps) and every file is checked.
$(VENV)/runtime: requirements/runtime.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV): about a minute, once."
	@$(PIP) --require-hashes -r requirements/runtime.txt
	@$(PIP) --no-build-isolation -e .
	@touch $@

$(VENV)/dev: requirements/dev.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV), TensorFlow included: about two minutes, once."
	@$(PIP) --require-hashes -r requirements/dev.txt
	@$(PIP) --no-build-isolation -e .
	@touch $@ $(VENV)/runtime

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "Could not make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }

RESOLVE := uv pip compile --universal --python-version 3.11 --generate-hashes \
	--no-annotate --no-header --no-emit-index-url --no-emit-find-links

# Resolve the requirements anew (needs uv).
lock:
	for extra in runtime dev; do \
		$(RESOLVE) pyproject.toml requirements/build.in -o requirements/$$extra.txt \
			$$(test $$extra = dev && echo "--all-extras -c requirements/runtime.txt"); \
	done
	$(RESOLVE) pyproject.toml requirements/build.in requirements/deploy.in --extra postgres \
		-c requirements/runtime.txt -o requirements/deploy.txt
	for peer in img2dataset tfds-official; do \
		$(RESOLVE) requirements/$$peer.in -o requirements/$$peer.txt; \
	done

clean:
	rm -rf $(VENV) .venv-img2dataset .venv-tfds-official .bench .demo
