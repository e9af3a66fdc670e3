# Everything a newcomer needs: `make demo`, `make test`, `make lab`. Each makes .venv first if it is missing or out of date.
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
EXTRAS := course,reproduce,dev
PYTEST := $(PY) -m pytest -q --timeout=600 --durations=15
# The first Python on the path that animkit supports; `make PYTHON=/path/to/python3.12 ...` chooses another.
SUITS  := -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do $$p $(SUITS) 2>/dev/null && { echo $$p; break; }; done)

.PHONY: help venv demo test test-all lab reproduce site doctor clean
.DEFAULT_GOAL := help

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(READY)  ## make or refresh .venv with the pinned versions

# Where Python comes without ensurepip (Debian without python3-venv), a first try leaves a .venv without pip: try again.
# torch first and by its exact version: a looser first install may take gigabytes of another build.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) $(SUITS) || { echo "animkit needs Python 3.11, 3.12 or 3.13 on the path (or make PYTHON=/path/to/python)"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): a few minutes the first time"
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	PYTHONWARNINGS=ignore $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(READY)  ## text becomes an animation in three looks: out/demo/ gets a page and an mp4
	@$(PY) -m animkit demo

# Two testers with a core each: most of a test is Python, of which one tester runs one line at a time. `test-all` has
# one, as a test at full size takes 12 GiB.
test: $(READY)  ## the tests, minutes on two cores
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile -m "not slow and not full_size"

test-all: $(READY)  ## the slow and full-size tests too
	$(PYTEST)

lab: $(READY)  ## JupyterLab on the notebooks
	$(VENV)/bin/jupyter lab notebooks

reproduce: $(READY)  ## rerun the paper's experiments: make reproduce PRESET=smoke (or laptop: hours); JOBS=2 for two at a time
	@$(PY) -m animkit reproduce --preset $(or $(PRESET),smoke) --jobs $(or $(JOBS),1)

site: $(READY)  ## run all notebooks and write them as pages in out/site; long
	@$(PY) -m animkit site

doctor: $(READY)  ## what the environment has and lacks
	@$(PY) -m animkit doctor

clean:  ## remove .venv, caches and out/; trainings in runs/ and course folders stay
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
