# One virtual environment in two sizes: what runs (demo, up) and what also checks (test).
# Python 3.11 or newer and make are enough; another interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet --quiet
# A uv of your own in .venv is used; else one in a folder that nothing else needs.
UV := $(firstword $(wildcard $(VENV)/bin/uv) .venv-lock/bin/uv)
COMPILE := pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate
INPUTS := pyproject.toml requirements/runtime.txt requirements/build.txt

# Else each of the processes that work together, and that tests start by the hundred, compiles all of it again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-orchestrate up test long check chaos format lock clean

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | while IFS='|' read -r name text; do printf '%-24s %s\n' "$$name" "$$text"; done

setup: $(VENV)/.dev ## a virtual environment with everything, in .venv

demo: $(VENV)/.runtime ## a research run from start to end, on this machine alone
	@exec $(VENV)/bin/posthouse demo $(ARGS)

demo-orchestrate: $(VENV)/.runtime ## several agents by a plan that is approved, on this machine alone
	@exec $(VENV)/bin/posthouse demo-orchestrate $(ARGS)

up: $(VENV)/.runtime ## the whole service on this machine, until Ctrl-C
	@exec $(VENV)/bin/posthouse up $(ARGS)

# Three at a time: many tests wait for processes. A file's tests stay together, as they share a stack, and the files keep
# the order of tests/conftest.py.
PYTEST := $(PY) -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test: check ## every check and every test
	@$(PYTEST) $(ARGS)

long: $(VENV)/.dev ## every test in its long form: more examples, whole megabytes, each start a real one
	@$(PYTEST) --long $(ARGS)

check: $(VENV)/.dev ## lint, format, types, import contracts
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/ruff format --check --quiet . || { $(VENV)/bin/ruff format --check .; exit 1; }
	@$(VENV)/bin/mypy --no-error-summary
	@$(VENV)/bin/lint-imports --no-logo

chaos: $(VENV)/.dev ## about 14 minutes of faults and plans against the real processes, and the proof that nothing was lost
	@$(PY) -m tests.chaos $(ARGS)
	@$(if $(ARGS),,$(PY) -m tests.chaos dags)

format: $(VENV)/.dev ## put the code in order
	@$(VENV)/bin/ruff check --quiet --fix . || true
	@$(VENV)/bin/ruff format .

lock: $(UV) ## choose the newest versions that fit, and pin them with hashes
	$(UV) $(COMPILE) --upgrade --extra web pyproject.toml -o requirements/runtime.txt
	$(UV) $(COMPILE) --upgrade --extra web --extra anthropic --extra dev pyproject.toml -o requirements/dev.txt
	$(UV) $(COMPILE) --upgrade --group build -c requirements/dev.txt -o requirements/build.txt

clean: ## everything that make made, but no data
	@rm -rf $(VENV) .venv-lock build dist .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find src api_app worker_app tests -name __pycache__ -prune -exec rm -rf {} +

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "posthouse needs Python 3.11 or newer, and '$(PYTHON)' is not; say which one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Setting up $(VENV) (once; about a minute)"
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.runtime: $(INPUTS) | $(PY)
	@$(PIP) install --require-hashes -r requirements/runtime.txt
	@$(PIP) install --require-hashes -r requirements/build.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# The larger size holds the smaller one.
$(VENV)/.dev: requirements/dev.txt $(INPUTS) | $(PY)
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $(VENV)/.runtime $@

.venv-lock/bin/uv:
	@$(PYTHON) -m venv --clear .venv-lock
	@.venv-lock/bin/python -m pip --disable-pip-version-check --quiet --quiet install uv
