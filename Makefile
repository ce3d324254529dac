# make demo: everything on the embedded data.   make test: the tests.   make check: style, types and plain English.
# make docs: the pages as a site, in site/.
# LOCKED=1 after any of them: the versions of requirements.lock.   make lock: write that file.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.SILENT:
.PHONY: demo test test-all check docs lock clean

PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# The stages are some thirty processes: without its cache of bytecode each would compile torch's sources anew.
unexport PYTHONDONTWRITEBYTECODE
# Libraries that would ask the network for news at every import.
export NO_ALBUMENTATIONS_UPDATE := 1
export DVC_NO_ANALYTICS := 1
# Advertises another program at every build.
export NO_MKDOCS_2_WARNING := 1

demo: $(VENV)/ready
	git rev-parse -q --verify HEAD >/dev/null || { echo "error: dvc needs a git repository with at least one commit: git init, git add -A, git commit" >&2; exit 1; }
	mtkd repro --jobs 2
	mtkd summary

# Two processes with one thread each; the tests of a file stay together, and the slow files come first. Their thousands of
# small files lie in the memory, where that has room.
MEMORY_DISK := $(shell test -w /dev/shm && test "$$(df -m --output=avail /dev/shm | tail -1)" -gt 4000 && echo /dev/shm)
PYTEST := OMP_NUM_THREADS=1 PYTEST_DEBUG_TEMPROOT=$(MEMORY_DISK) pytest -n 2 --dist loadfile --no-loadscope-reorder

test: check
	$(PYTEST)

test-all: check
	MTKD_KILLS=20 $(PYTEST)

check: $(VENV)/ready-dev
	ruff check --quiet .
	ruff format --quiet --check .
	mypy --no-error-summary
	python docs/scripts/make_reference.py --check
	python docs/scripts/plain_english.py

docs: $(VENV)/ready-dev
	mkdocs build --strict --quiet
	echo "site/index.html"

# The stamp `locked` says that the lock's versions are installed; an installation without LOCKED=1 removes it.
ifeq ($(LOCKED),1)
CONSTRAINTS := -c requirements.lock
LOCK_STAMP := $(VENV)/locked
endif

$(VENV)/ready: pyproject.toml $(LOCK_STAMP)
	$(call install,-e .)

$(VENV)/ready-dev: $(VENV)/ready
	$(call install,-e '.[dev]')

$(VENV)/locked: requirements.lock
	mkdir -p $(VENV)
	touch $@

# Records what is installed. A build such as torch 2.14.1+cpu loses its suffix: every build of a version satisfies it.
lock: $(VENV)/ready-dev
	pip --disable-pip-version-check freeze --all --exclude-editable --exclude pip --exclude wheel > $(VENV)/installed
	! grep -e ' @ ' -e '^-' $(VENV)/installed || { echo "error: these packages have no version in a package registry. Run: make clean, then make lock" >&2; exit 1; }
	echo "# Exact versions of all libraries for CPU machines, recorded with $$(python --version | cut -d. -f1,2) on $$(uname -sm)." > requirements.lock
	echo "# Written by: make lock. Installed by: make demo LOCKED=1. A library that a platform does not need is not installed." >> requirements.lock
	sed 's/+.*//' $(VENV)/installed >> requirements.lock

# The names of packages pass by as pip finds them; all it says is in pip.log.
define install
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "error: mtkd needs Python 3.11 or newer, found $$($(PYTHON) --version 2>&1 || true): name one with make PYTHON=python3.12" >&2; exit 1; }
test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) -m venv failed: install Python's venv module" >&2; exit 1; }
$(if $(CONSTRAINTS),,rm -f $(VENV)/locked)
echo "installing mtkd and its libraries into $(VENV); the first time takes minutes"
$(VENV)/bin/pip install --disable-pip-version-check --no-compile --progress-bar off $(CONSTRAINTS) $(1) 2>&1 | tee $(VENV)/pip.log | sed -un 's/^Collecting \([^ (]*\).*/  \1/p; s/^Installing collected.*/  unpacking .../p' || { echo "error: pip could not install the libraries ($$(grep -m1 '^ERROR' $(VENV)/pip.log | cut -c1-160)): is the package registry in reach? All that pip said: $(VENV)/pip.log" >&2; exit 1; }
touch $@
endef

clean:
	rm -rf $(VENV)
