# Everything runs in .venv; the first target that needs it creates it from the lock file.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TYPES := $(VENV)/types/meterline

.PHONY: help demo demo-stream test test-long test-flink check format bench dev lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(READY): requirements.lock setup.py pyproject.toml transforms/compiled.pyx
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Meterline needs Python 3.11; set PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Installing into $(VENV) (once, some minutes) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)  ## rate and invoice a real LLM trace on this machine
	@$(BIN)/meterline demo

demo-stream: $(READY)  ## the same as a stream through the Pub/Sub emulator, on Flink where Maven is found (needs Java and the emulator)
	@$(BIN)/meterline demo-stream

test: $(READY)  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-long: $(READY)  ## the same with 10,000 simulated worlds, 100,000 mutated records and 100 worlds under kill -9
	METERLINE_SEEDS=10000 METERLINE_METER_SEEDS=600 METERLINE_PRICE_SEEDS=600 METERLINE_CONTRACT_SEEDS=400 METERLINE_WHAT_IF_SEEDS=100 \
		METERLINE_RUNNER_SEEDS=200 METERLINE_KILL_SEEDS=10 METERLINE_KILL_WORLDS=100 METERLINE_FUZZ=100000 \
		$(BIN)/python -m pytest -n 2 --dist worksteal

test-flink: $(READY)  ## kill parts of a real Flink cluster under a stream (needs Java 11 or 17, Maven, the Pub/Sub emulator)
	METERLINE_FLINK_TESTS=1 $(BIN)/python -m pytest -s tests/flink

check: $(READY)  ## format, lint, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@mkdir -p $(TYPES) && for d in schemas transforms pipelines runners; do ln -sfn $(CURDIR)/$$d $(TYPES)/$$d; done
	MYPYPATH=$(VENV)/types $(BIN)/mypy -p meterline.schemas -p meterline.transforms -p meterline.pipelines -p meterline.runners
	$(BIN)/python -m pytest -q tests/test_layers.py

format: $(READY)  ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## print the numbers we defend
	$(BIN)/python benchmarks/main_job.py
	$(BIN)/python benchmarks/compare.py
	$(BIN)/python benchmarks/parts.py

dev: $(READY)  ## only install, for work on the code
	@echo "Ready: source $(VENV)/bin/activate"

lock:  ## resolve the dependencies anew into requirements.lock
	rm -rf .lock-venv && $(PYTHON) -m venv .lock-venv
	.lock-venv/bin/pip install --quiet -U pip setuptools
	.lock-venv/bin/pip install --quiet ".[dev]"
	.lock-venv/bin/pip freeze --all --exclude meterline --exclude pip > requirements.lock
	rm -rf .lock-venv

clean:  ## remove what the targets made
	rm -rf $(VENV) .lock-venv build dist *.egg-info transforms/compiled.c transforms/compiled.*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
