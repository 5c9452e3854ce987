# Every target first installs the pinned stack of requirements/ into .venv.
# PYTHON=python3.12 make ... chooses the interpreter of .venv (3.10 or newer), and STACK=openmmlab
# OpenMMLab's own distributions in place of the maintained forks.

export PYTHON STACK
CANDIDATES = $(or $(PYTHON),python3.11 python3.12 python3.10 python3)
IS_NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 10))
RUN = .venv/bin/python
WORKERS ?= 2

.PHONY: help install quick demo test test-gpu docs lint format clean
.DEFAULT_GOAL := help

help:  ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r target text; do \
		printf '  make %-8s %s\n' "$$target" "$$text"; done
	@echo
	@echo '  PYTHON=python3.12 make install   choose the interpreter (3.10 or newer)'
	@echo '  STACK=openmmlab make install     install mmengine, mmcv, mmdet, ... instead of the onedl forks'
	@echo '  Other variables: see tools/misc/install.py and tools/misc/mmcv_wheel.py'

# A version manager's launcher can be on PATH and still fail, so each candidate is run.
install:  ## Create .venv and install everything into it
	@for python in $(CANDIDATES); do \
		if "$$python" -c '$(IS_NEW_ENOUGH)' 2>/dev/null; then exec "$$python" tools/misc/install.py; fi; \
	done; \
	echo 'No Python 3.10 or newer runs (tried: $(CANDIDATES)). Install one:' >&2; \
	echo '    Debian, Ubuntu:  sudo apt-get install python3 python3-venv python3-dev' >&2; \
	echo '    Fedora:          sudo dnf install python3 python3-devel' >&2; \
	echo 'or name one:         PYTHON=/path/to/python3.11 make install' >&2; exit 1

demo: install  ## Write the Shapes set, train and evaluate an HCFormer on it, draw its results
	@$(RUN) demo/shapes.py

quick: install  ## Segment images with the tiny model that comes with the package, and browse its clusters
	@$(RUN) demo/quick.py

# worksteal starts each worker on a run of neighbors, so most module fixtures are set up only once.
test: install  ## Run the tests on WORKERS=2 processes (the slow ones too: .venv/bin/python -m pytest -m '')
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN) -m pytest -n $(WORKERS) --dist worksteal

test-gpu: install  ## Run the tests on a GPU, and print parity and times (HCFORMER_MM_TEST_DEVICE=cpu: on the CPU)
	@$(RUN) -m pytest -m 'gpu and not slow' --durations=10

docs: install  ## Write the documentation as a website to site/
	@$(RUN) -m pip install -q --disable-pip-version-check -r requirements/docs.txt
	@$(RUN) -m sphinx -q --fail-on-warning --keep-going -c docs . site
	@echo "Open site/index.html in a browser."

lint: install  ## Check style and types
	@$(RUN) -m ruff check
	@$(RUN) -m ruff format --check
	@$(RUN) -m mypy hcformer_mm

format: install  ## Fix the style automatically
	@$(RUN) -m ruff check --fix
	@$(RUN) -m ruff format

clean:  ## Remove .venv and caches, but no data and results
	rm -rf .venv .ruff_cache .mypy_cache .pytest_cache hcformer_mm.egg-info hcformer_mm/.mim docs/api jupyter_execute site
