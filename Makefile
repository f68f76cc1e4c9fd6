# Three commands, each of which sets up what it needs, once:
#   make report   train and evaluate the quickstart, write one HTML report
#   make test     run every test
#   make lab      JupyterLab on the same environment
# make setup does the set-up alone; make lock compiles requirements.lock from pyproject.toml.

PYTHON ?= python3.11
CONFIG ?= configs/quickstart.yaml
BIN    := .venv/bin
UV     := $(BIN)/uv
PYTEST ?= tests
# the quick tests on all cores, a process each; more threads than that would only wait for one another
# the slow ones two files at a time, as they mostly wait; on a shared machine threads that spin while they wait would cost minutes
QUICK   = OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n auto --dist loadfile --durations=25 --durations-min=5
SLOW    = OMP_WAIT_POLICY=passive $(BIN)/pytest -m slow -n 2 --dist loadfile --durations=40 --durations-min=5
# the frozen set that the project holds its own decoder to; tests/frozen/config.yaml says how it was made
FROZEN := 5ee618887f4a75365e8f7fa7605473e8ef0cf2091a479c6acfbbe24fae65eb1f

.DEFAULT_GOAL := help
.PHONY: help setup report test gate quick check lab dashboard lock clean

help:
	@sed -n '2,5p' Makefile | cut -c3-

report: setup
	@$(BIN)/speechlab report --config $(CONFIG)

test: setup .venv/debian check
	@$(QUICK) $(PYTEST)
	@$(SLOW) $(PYTEST) || [ $$? = 5 ]
	@$(MAKE) --no-print-directory gate

gate: setup
	@$(BIN)/speechlab gate --candidate tiny.en --baseline tests/frozen/recorded.jsonl --config tests/frozen/config.yaml --margin 1 --frozen $(FROZEN)

quick: setup
	@$(QUICK) $(PYTEST)

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

lab: setup
	@$(BIN)/jupyter lab --ip 127.0.0.1 --LabApp.news_url=None $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/03_train.ipynb

dashboard: setup
	@$(BIN)/speechlab dashboard

setup: .venv/ready

# The environment from the lock, the package editable, then corpus and weights into the cache. Bytecode is compiled
# here once, or each Ray worker would compile torch anew where PYTHONDONTWRITEBYTECODE is set.
.venv/ready: requirements.lock pyproject.toml | .venv/bin/uv
	@echo "installing $$(grep -c '==' requirements.lock) pinned packages"
	@$(UV) pip sync --quiet --require-hashes --compile-bytecode --python $(BIN)/python requirements.lock
	@$(UV) pip install --quiet --no-deps --python $(BIN)/python --editable .
	@$(BIN)/speechlab fetch
	@touch $@

# uv is the one thing that pip installs, by the lock's own hashes; the lock then holds it like all else.
.venv/bin/uv:
	@echo "making .venv"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; bash .ci/debian python3.11-venv && $(PYTHON) -m venv .venv; }
	@awk '/^[a-z]/{keep=0} /^uv==/{keep=1} keep' requirements.lock > .venv/uv.txt
	@$(BIN)/python -m pip install --quiet --require-hashes -r .venv/uv.txt

# What only the tests need from Debian: a browser, NIST's scorer and ffmpeg as oracles, encoders of the formats read, a database.
.venv/debian: | .venv/ready
	@bash .ci/debian chromium sctk ffmpeg sox libsox-fmt-all libvo-amrwbenc0 postgresql
	@touch $@

lock: | .venv/bin/uv
	@$(UV) pip compile --quiet --universal --extra dev --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --python-version 3.11 pyproject.toml -o requirements.lock

clean:
	rm -rf .venv build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
