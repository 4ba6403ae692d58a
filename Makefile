# Two commands do all the set-up on a fresh machine: `make run` and `make test`.
# TORCH_INDEX picks the build of torch: make install TORCH_INDEX=<the index of PyTorch's installation page>
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= runs/full
TORCH_INDEX ?=
PYTEST_ARGS ?=
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)

export OMP_NUM_THREADS ?= 1

.PHONY: install run test test-slow bench-attacks bench-corruptions lint types clean

install: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "Python must be 3.11 or newer with venv, got none; install it or pass PYTHON=..." >&2; exit 2; }
	@test -x $(BIN)/python && $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@# tests compare with it; what it asks for besides (a windowed OpenCV) is replaced by the headless one of [dev]
	-$(BIN)/python -m pip install -q --no-deps imagecorruptions==1.1.2
	@touch $@

run: install
	$(BIN)/robench run --suite full --out $(OUT)

# files in their order, the dear ones of tests/ before short ones: ordered by their number of tests those came last
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-slow: install
	$(BIN)/python -m pytest -m 'slow and not gpu' $(PYTEST_ARGS)

bench-attacks: install
	$(BIN)/python -m robench.benchmark

bench-corruptions: install
	$(BIN)/python -m robench.corruptbench

types: install
	$(BIN)/python tests/types_tree.py
	$(BIN)/python -m mypy

lint: install
	$(BIN)/python -m ruff check .
	$(MAKE) types

clean:
	rm -rf $(VENV) build dist _types *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
