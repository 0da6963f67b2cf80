# make demo: install, generate data, train, evaluate, predict.   make test: install what the tests need, run them all.
# make docs: build the site into site/; a broken link or an unknown reference is an error.
# make test-versions: try Python 3.10 to 3.13 with the newest dependencies, in environments of their own (slow).
# make gpu-check: on a machine with a GPU, run its tests, the check of the kernels and the benchmarks into gpu-check.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
# one BLAS thread for each of the test processes
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 MPLBACKEND=Agg

.PHONY: demo test lint types unit browser docs gpu-check test-versions clean

demo: $(VENV)/.installed
	$(BIN)/volo-seg demo

test: lint types unit

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

unit: $(VENV)/.installed-test browser
	$(TEST_ENV) $(BIN)/python -m pytest $(ARGS)

docs: $(VENV)/.installed-docs
	$(BIN)/zensical build --clean --strict

test-versions:
	$(PYTHON) tests/versions.py $(ARGS)

gpu-check: $(VENV)/.installed-test
	$(BIN)/python benchmarks/gpu_check.py

# the page is tested in Debian's chromium; where that is missing and cannot be installed, its test is skipped
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
		&& DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium; } >/dev/null 2>&1 \
		|| echo 'chromium is missing and cannot be installed here: the browser test will be skipped'

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone: whatever asks for it afterwards finds it there
$(VENV)/.installed: setup.py constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) -e '.[cityscapes]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) -e '.[test]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) -e '.[docs]'
	touch $@

clean:
	rm -rf build site *.egg-info .pytest_cache .mypy_cache .ruff_cache
