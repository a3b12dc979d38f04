# `make` alone lists the verbs. Each does all the set-up it needs.
.DEFAULT_GOAL := help
.PHONY: help install demo test thorough check prove matrix times teeth bugs bench docs lock clean

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# A copy as installed, because tools that read sources can't see the package in folders that are mapped into it.
COPY := build/installed

help: ## list the verbs
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(STAMP): requirements.lock pyproject.toml package/VERSION
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

install: $(STAMP) ## make .venv with the pinned dependencies and the capvisor command

demo: $(STAMP) ## run the tutorial and the golden vectors on both implementations
	$(BIN)/capvisor run programs/tutorial
	$(BIN)/capvisor fuzz programs/tutorial --lanes 20000
	$(BIN)/capvisor corpus run
	$(BIN)/capvisor fuzz --profile caps --programs 60000 --seed 1 --no-history
	$(BIN)/capvisor conform tests/vectors

test: $(STAMP) ## run all tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

thorough: $(STAMP) ## run all tests, with all cases of those kinds of which `make test` takes a part
	CAPVISOR_TESTS=all $(BIN)/python -m pytest -n 2 --dist worksteal

check: $(STAMP) ## lint, types and the architecture of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(COPY) build/lib
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation --target $(COPY) .
	cd $(COPY) && MYPYPATH=. $(abspath $(BIN))/mypy --config-file $(abspath pyproject.toml) --python-executable $(abspath $(BIN))/python -p capvisor.spec -p capvisor.dsl -p capvisor.study -p capvisor.cli
	cd $(COPY) && PYTHONPATH=. $(abspath $(BIN))/lint-imports --config $(abspath pyproject.toml) --no-cache

prove: $(STAMP) ## prove every theorem, and every step of every system (half an hour; kept answers make the next run quick)
	$(BIN)/capvisor prove --all
	$(BIN)/capvisor prove vmm
	$(BIN)/capvisor prove tpt
	$(BIN)/capvisor prove cvm '*.cc64'
	$(BIN)/capvisor prove orc '*.cc64'
	$(BIN)/capvisor prove stack

matrix: $(STAMP) ## prove that every operation keeps every invariant, and that both implementations take the same step (minutes)
	$(BIN)/capvisor prove --matrix

times: $(STAMP) ## prove every theorem anew, and keep the times for the docs
	mkdir -p build
	$(BIN)/capvisor prove --all --no-cache --json build/proofs.json
	$(BIN)/python docs/record_proof_times.py build/proofs.json

teeth: $(STAMP) ## break the code in every way that is listed or found, and see a theorem fall (minutes)
	$(BIN)/capvisor prove --all --matrix --teeth
	$(BIN)/capvisor prove --sweep all

bugs: $(STAMP) ## how quickly campaigns find seeded bugs, and how small they make them (minutes)
	$(BIN)/python -m tests.quality.campaigns
	$(BIN)/python -m tests.quality.campaigns --engine hypothesis

bench: $(STAMP) ## measure the reference and the fast path
	$(BIN)/capvisor bench

docs: $(STAMP) ## build the documentation into docs/_build
	$(BIN)/python docs/generate.py
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_build

lock: ## pin what pyproject.toml asks for anew (needs pip-tools)
	$(PYTHON) -m piptools compile --quiet --allow-unsafe --strip-extras --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --all-extras --output-file requirements.lock pyproject.toml

clean: ## remove what the other verbs made
	rm -rf .venv build dist docs/_build docs/reference *.egg-info
