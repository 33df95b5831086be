# `make train` and `make test` need Python >= 3.11 and make, nothing else; every other target builds on the same .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
STAMP  := $(VENV)/.installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install train test test-fast check compat bench soak ui compare docs lock clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lr_lightning needs Python >= 3.11; set it with: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV) with everything that the project uses and is tested with: some minutes, once."
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[app,plot,optimizers,launchers,bench,postgres,heic,onnx,examples,loggers,docs,dev]"
	@touch $@

install: $(STAMP)  ## the virtual environment in .venv, with everything

train: $(STAMP)  ## the main job: a CNN on the embedded digits; ARGS="schedule=constant optimizer.lr=0.05" passes overrides on
	$(BIN)/python scripts/train.py $(ARGS)

check: $(STAMP)  ## lint, format, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --cache-dir .import_linter_cache

test: check  ## every check and every test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 $(ARGS)

test-fast: $(STAMP)  ## the tests that start no processes of their own
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow" $(ARGS)

compat:  ## the callbacks' tests with Lightning 2.6, 2.5 and pytorch_lightning, each in its own environment
	@PYTHON=$(PYTHON) .ci/compat

bench: $(STAMP)  ## the small form of every benchmark that needs no data of yours: a few minutes, nothing stored
	@for name in lr_schedule_cost monitor_cost logging finder_cost throughput finder_regret finder_retry schedules \
		batch_growth super_convergence smith_table pruning pruning_replay forecast search_methods many_ranks store_scale lr_effects whole_run cooldown_preview advice threads growth peers start gpu; do \
		echo "== benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name --quick $(ARGS) || exit 1; done

soak: $(STAMP)  ## kill one run a hundred times and compare it with one that never stopped; 20 minutes
	$(BIN)/python -m benchmarks.soak $(ARGS)

ui: $(STAMP)  ## the MLflow UI on this checkout's runs, on 127.0.0.1 only; ARGS="--port 5001"
	$(BIN)/python scripts/ui.py $(ARGS)

compare: $(STAMP)  ## a report on the runs so far; ARGS='--by schedule --target "val/acc>=0.97"' passes options on
	$(BIN)/python scripts/compare.py $(ARGS)

docs: $(STAMP)  ## the documentation in site/; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The documentation is in site/. Open this file in a browser: $(CURDIR)/site/index.html"

lock: $(STAMP)  ## write the installed versions to constraints.txt, after the tests have passed with them
	@{ echo "# Every version that was tested; written by 'make lock'."; $(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//'; } > constraints.txt.new
	@mv constraints.txt.new constraints.txt && touch $(STAMP)

clean:  ## remove the virtual environments and caches; runs and outputs stay
	rm -rf $(VENV) .venvs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist site *.egg-info
