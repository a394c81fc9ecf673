# make demo and make test set everything up first: a virtual environment and what pyproject.toml lists.
# Started again they are quick: the stamp files inside the environment say that it is complete.

PYTHON ?= python3
VENV ?= .venv
# 1: exactly the versions of requirements.lock, which was made on one version of Python
LOCK ?=
# cpu: PyTorch for CPUs alone, from its own index of wheels, without the GB of CUDA; for a new environment
TORCH ?=
TORCH_INDEX := https://download.pytorch.org/whl/cpu
MODEL ?= dino_vits16
# a checkpoint of MODEL, where it cannot be downloaded
WEIGHTS ?=
DEMO_DIR ?= outputs/demo
WORKERS ?= 2
PYTEST_ARGS ?=
# of make fuzz
MINUTES ?= 10

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
ifeq ($(LOCK),1)
CONSTRAINTS := -c requirements.lock
INSTALLED := $(VENV)/.installed-locked
REQUIREMENTS := requirements.txt pyproject.toml requirements.lock
else
CONSTRAINTS :=
INSTALLED := $(VENV)/.installed
REQUIREMENTS := requirements.txt pyproject.toml
endif
TESTABLE := $(INSTALLED)-test
DOCUMENTABLE := $(INSTALLED)-docs
# There while something is being installed: an environment left with it is made anew.
UNFINISHED := $(VENV).unfinished

# The stamps of an environment that is unfinished, does not start or was filled from elsewhere (a moved checkout)
# count for nothing.
$(shell if test -e $(UNFINISHED) || ! $(PY) -c '' 2>/dev/null || ! grep -qsxF "$(CURDIR)" $(INSTALLED); \
        then rm -f $(INSTALLED) $(TESTABLE) $(DOCUMENTABLE); fi)

.PHONY: help demo test test-gpu fuzz lint docs clean distclean
.DEFAULT_GOAL := help

help:
	@echo "make demo       objects in data/samples: masks, cut-outs and a page in $(DEMO_DIR) (MODEL=$(MODEL) WEIGHTS=PATH)"
	@echo "make test       all tests (PYTEST_ARGS=\"-k NAME\" for some, WORKERS=$(WORKERS) processes)"
	@echo "make test-gpu   the tests that need a GPU"
	@echo "make fuzz       new examples for the tests that draw them, for MINUTES=$(MINUTES)"
	@echo "make lint       ruff (rules and format) and mypy"
	@echo "make docs       the site, docs/_build/html/docs/index.html"
	@echo "make clean      remove what the demo wrote, and caches"
	@echo "make distclean  ... and the virtual environment $(VENV)"
	@echo "The first two set up $(VENV) when needed, with PYTHON=$(PYTHON) (TORCH=cpu: without CUDA)."

# --- set-up ---------------------------------------------------------------------------------------------------------

define CHECK_PYTHON
	command -v $(PYTHON) >/dev/null || { echo "set-up: there is no $(PYTHON) here; Python 3.10 or newer is needed (another one: make PYTHON=/path/to/python3)" >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "set-up: $(PYTHON) is `$(PYTHON) -V 2>&1`; Python 3.10 or newer is needed (another one: make PYTHON=/path/to/python3)" >&2; exit 1; }; \
	$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "set-up: $(PYTHON) has no venv module (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
endef

# pydensecrf is compiled; where that cannot be, torch takes its place.
define INSTALL_CRF
	$(PIP) install -e '.[crf]' $(CONSTRAINTS) >$(VENV)/crf.log 2>&1 \
	    && $(PY) -c 'import pydensecrf.densecrf' 2>/dev/null \
	    || echo "set-up: no pydensecrf here (it needs Python below 3.13, a C++ compiler and Python.h; see $(VENV)/crf.log): the dense CRF works by torch" >&2
endef

# $(1): what pip is to install. Stopped by a signal, the mark stays; when pip itself gives up, the environment is as it was.
define PIP_INSTALL
	trap 'exit 130' INT TERM; \
	touch $(UNFINISHED) && { $(PIP) install $(1) $(CONSTRAINTS) || { rm -f $(UNFINISHED); exit 1; }; } && rm -f $(UNFINISHED)
endef

$(INSTALLED): $(REQUIREMENTS)
	@if test -e $(UNFINISHED) || ! { $(PY) -m pip --version || $(PY) -m ensurepip; } >/dev/null 2>&1; then \
	    $(CHECK_PYTHON); \
	    echo "set-up: making $(VENV) with `$(PYTHON) -V`: $(if $(filter cpu,$(TORCH)),less than,about) 3 GB to download$(if $(filter cpu,$(TORCH)),, (TORCH=cpu: less)), minutes, once"; \
	    touch $(UNFINISHED) && $(PYTHON) -m venv --clear $(VENV) && $(PIP) install --quiet --upgrade pip && rm -f $(UNFINISHED); \
	fi
	@$(if $(filter cpu,$(TORCH)),$(call PIP_INSTALL,--index-url $(TORCH_INDEX) $$(grep '^torch' requirements.txt)))
	@$(call PIP_INSTALL,-e .)
	@$(INSTALL_CRF)
	@echo "$(CURDIR)" > $@

$(TESTABLE): $(INSTALLED)
	@$(call PIP_INSTALL,--quiet -e '.[test]')
	@touch $@

$(DOCUMENTABLE): $(INSTALLED)
	@$(call PIP_INSTALL,--quiet -e '.[docs]')
	@touch $@

# --- the two commands -----------------------------------------------------------------------------------------------

# Without the weights of $(MODEL), and without a network to fetch them, the demo takes lab_graph.
demo: $(INSTALLED)
	@$(if $(WEIGHTS),,echo "demo: downloads the weights of $(MODEL), where they are not there yet (dino_vits16: 87 MB)";) \
	run() { $(PY) extract/extract.py run --images data/samples/images --model_name "$$model" --output "$(DEMO_DIR)/$$model" "$$@"; }; \
	model=$(MODEL); status=0; \
	run $(if $(WEIGHTS),--weights "$(WEIGHTS)") || status=$$?; \
	if test $$status -eq 1 && test ! -e "$(DEMO_DIR)/$$model/index.html"; then \
	    echo "demo: no features from $$model; going on with lab_graph, which needs no weights" >&2; \
	    model=lab_graph; status=0; \
	    run || status=$$?; \
	fi; \
	test $$status -eq 0 && echo "demo: the page with the results is $$(cd "$(DEMO_DIR)/$$model" && pwd)/index.html"

# WORKERS processes with one thread each: together they load two cores better than one process whose small
# matrices are split over threads, and with more threads than cores they would hinder each other.
# A file's tests stay together, so that what its fixtures computed is computed once.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile
test: $(TESTABLE)
	$(PYTEST) $(PYTEST_ARGS)

test-gpu: $(TESTABLE)
	$(PYTEST) tests/test_gpu.py

# Every run of the tests draws the same examples (tests/conftest.py); here each round draws others. A failure shows the
# example and how to draw it again; it belongs into the test as @example.
fuzz: $(TESTABLE)
	@end=$$(($$(date +%s) + 60 * $(MINUTES))); \
	while test "$$(date +%s)" -lt $$end; do \
	    seed=$$($(PY) -c 'import secrets; print(secrets.randbelow(10**9))'); \
	    echo "fuzz: examples of --hypothesis-seed=$$seed"; \
	    $(PYTEST) -q -m hypothesis --hypothesis-profile=fuzz --hypothesis-seed=$$seed $(PYTEST_ARGS) || exit 1; \
	    (cd tests && $(abspath $(PY)) -m faults.fuzz --seed $$seed --files 2000 --commands 400 --names 100 --kills 10) || exit 1; \
	done

lint: $(TESTABLE)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Warnings are errors: a link that leads nowhere, a page that is in no table of contents, a notebook that fails.
docs: $(DOCUMENTABLE)
	$(PY) -m sphinx -q -W --keep-going -c docs -b html -d docs/_build/.doctrees . docs/_build/html
	@echo "docs: the site is $(CURDIR)/docs/_build/html/docs/index.html"

clean:
	rm -rf "$(DEMO_DIR)" docs/_build docs/commands docs/reference .pytest_cache .ruff_cache .hypothesis build extract/*.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(UNFINISHED)
