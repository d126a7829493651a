# talas: everything runs in .venv, which the first target to need it sets up. `make` alone lists the targets.

TORCH_VERSION := 2.13.0
TORCH_INDEX ?=
WORKERS ?= 2
PRESET ?= cpu-study
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# the interpreter that .venv is made with; looked up only when there is no .venv yet
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && command -v "$$p" && break; done)
# one file says that .venv holds what this lock and this torch ask for
READY := $(VENV)/.ready-$(shell (cat requirements.lock; echo torch==$(TORCH_VERSION)) | cksum | tr ' ' '-')
# The site's packages lie in a folder of their own, so that .venv and its JupyterLab are the same with and without them.
DOCS := $(CURDIR)/$(VENV)/docs
DOCS_READY := $(VENV)/.docs-ready-$(shell cat requirements-docs.lock | cksum | tr ' ' '-')
# commands see .venv first and its Jupyter kernel before any of the user's
RUN := PATH="$(CURDIR)/$(BIN):$$PATH" JUPYTER_PREFER_ENV_PATH=1
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
NOTEBOOKS = $(wildcard notebooks/*.ipynb)

unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help setup quickstart study study-dry bench test test-all lab docs lint format lock clean-cache

help:  ## this list
	@echo "make TARGET [VARIABLE=value]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile
	@echo "variables"
	@echo "  PYTHON       Python 3.11 or newer to make .venv with (found by itself)"
	@echo "  TORCH_INDEX  where torch comes from. On Linux the default build carries CUDA, several GB; without a GPU take"
	@echo "               TORCH_INDEX=https://download.pytorch.org/whl/cpu"
	@echo "  WORKERS      processes of the tests ($(WORKERS))"
	@echo "  PRESET       the study of make study: cpu-study (default), paper-study on a GPU, or one of your own"
	@echo "  ARGS         further arguments for pytest, jupyter lab, the benchmarks or a study, e.g. make test ARGS='-k losses'"

setup: $(READY)  ## make .venv and install the locked packages and torch (once, a few minutes)

quickstart: $(READY)  ## distil the default pair, evaluate, measure sharpness, compare (under 8 minutes on 2 cores)
	@$(RUN) python -m talas_lib quickstart

study: $(READY)  ## make all runs and tables of PRESET that are not on record; goes on where it stopped (needs TALAS_DATA)
	@$(RUN) python -m talas_lib $(PRESET) $(ARGS)

study-dry: $(READY)  ## what `make study` would do: jobs, caches, estimated hours; ARGS='--tables table1' for a part
	@$(RUN) python -m talas_lib $(PRESET) --dry-run $(ARGS)

bench: $(READY)  ## time and memory of all that is done here beside the usual ways (about 15 idle minutes); writes results/bench, or ARGS='--out FOLDER'
	@$(RUN) python -m benchmarks $(ARGS)

test: $(READY)  ## tests but the slow and the browser ones; needs no network
	@$(RUN) python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not browser" $(ARGS)

test-all: $(READY)  ## all tests (those that need local data, a browser or the packages of make docs skip without them)
	@PYTHONPATH="$(DOCS)" $(RUN) python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lab: $(READY)  ## JupyterLab, opened at notebooks/00_quickstart.ipynb
	@$(RUN) jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks/00_quickstart.ipynb $(ARGS)

docs: $(DOCS_READY)  ## the site: notebooks executed on tiny models, guides, results, API, search; outputs/site/html/index.html
	@PYTHONPATH="$(DOCS)" $(RUN) python -m tools.website

lint: $(READY)  ## ruff, mypy, and no notebook with outputs; changes nothing
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(if $(NOTEBOOKS),$(RUN) nbstripout --verify $(NOTEBOOKS))

format: $(READY)  ## ruff's fixes and format, outputs stripped from the notebooks
	@$(RUN) ruff check --fix --exit-zero .
	@$(RUN) ruff format .
	@$(if $(NOTEBOOKS),$(RUN) nbstripout $(NOTEBOOKS))

lock: $(DOCS_READY)  ## rewrite requirements.lock and requirements-docs.lock from what .venv holds now
	@PYTHONPATH="$(DOCS)" $(RUN) python tools/lock.py

clean-cache: $(READY)  ## delete outputs/cache: teacher embeddings and unpacked models, made again when needed; runs stay
	@$(RUN) python -c 'import shutil; from talas_lib import paths; folder = paths.cache_dir(); \
		shutil.rmtree(folder) if folder.exists() else None; print(f"removed {folder}")'

# Each step skips what is there already, so an interrupted set-up goes on where it stopped. pip writes a package's INSTALLER
# file after all others: a package without one was cut off half-way, and is forgotten so that pip installs it again.
$(READY):
	@test -x $(BIN)/python || "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "talas needs Python 3.11 or newer; $(if $(PYTHON),$(PYTHON) is not,none of python3.11 to python3.13 and python3 is)." \
		"Install one, or name it: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "set-up 1/4: $(VENV), with $(PYTHON)"; \
		"$(PYTHON)" -m venv $(VENV) || { echo "Could not make $(VENV): see above; remove $(VENV) before the next try" >&2; exit 1; }; }
	@for folder in $(VENV)/lib/python*/site-packages/*.dist-info; do \
		test ! -d "$$folder" || test -f "$$folder/INSTALLER" || rm -r "$$folder"; done
	@echo "set-up 2/4: the packages of requirements.lock (about 290 MB, one to five minutes)"
	@$(PIP) install --require-hashes --no-deps -r requirements.lock
	@echo "set-up 3/4: torch $(TORCH_VERSION) (CPU build 200 MB; CUDA build several GB: see TORCH_INDEX in make help)"
	@$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) --no-warn-conflicts torch==$(TORCH_VERSION)
	@echo "set-up 4/4: talas itself, editable"
	@PYTHONWARNINGS=ignore $(PIP) install --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/.ready-* && touch $@
	@echo "set-up done: $$($(BIN)/python --version), torch $$($(BIN)/python -c 'from importlib.metadata import version; print(version("torch"))')"

$(DOCS_READY): $(READY)
	@echo "set-up for the site: the packages of requirements-docs.lock (about 25 MB)"
	@rm -rf "$(DOCS)" $(VENV)/.docs-ready-*
	@$(PIP) install --require-hashes --no-deps --target "$(DOCS)" -r requirements-docs.lock
	@touch $@
