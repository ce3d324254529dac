# make demo: everything on the embedded data.   make test: the tests.   make check: style and types.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Version checks of libraries would go over the network at every import.
export NO_ALBUMENTATIONS_UPDATE := 1
export DVC_NO_ANALYTICS := 1

.PHONY: demo test test-all check install clean

demo: $(READY)
	@git rev-parse -q --verify HEAD >/dev/null || { echo "error: dvc needs a git repository with at least one commit" >&2; exit 1; }
	@dvc repro
	@mtkd summary

test: $(READY)-dev
	@ruff check . && ruff format --check . && mypy
	@pytest

test-all: $(READY)-dev
	@pytest -m "slow or not slow"

check: $(READY)-dev
	ruff check . && ruff format --check . && mypy

install: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: mtkd needs Python 3.11 or newer, found $$($(PYTHON) --version 2>&1): try make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "error: $(PYTHON) could not make a virtual environment in $(VENV): install its venv module" >&2; exit 1; }
	@echo "installing into $(VENV), some minutes the first time ..."
	@pip install --quiet --disable-pip-version-check --no-compile -e . 2>$(VENV)/pip.log || \
	  { tail -n 3 $(VENV)/pip.log >&2; echo "error: pip could not install mtkd: is the package registry in reach? All it said: $(VENV)/pip.log" >&2; exit 1; }
	@touch $@

$(READY)-dev: $(READY)
	@pip install --quiet --disable-pip-version-check -e '.[dev]' 2>$(VENV)/pip.log || \
	  { tail -n 3 $(VENV)/pip.log >&2; echo "error: pip could not install the test tools: is the package registry in reach? All it said: $(VENV)/pip.log" >&2; exit 1; }
	@touch $@

clean:
	rm -rf $(VENV)
