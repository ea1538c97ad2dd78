PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
REQUIREMENTS := setup.cfg pyproject.toml constraints.txt benchmarks/peers.txt

.PHONY: demo test check figures notebooks

demo: .venv/installed  ## train three seeds each of SGD and Entropy-SGD, compare, write runs/demo/report.html
	$(BIN)/landscape demo --out runs/demo --overwrite

# one thread each: the tests' tensors are small, and two processes of two threads on two cores wait for each other
test: .venv/installed-test  ## the whole suite, on all cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --dist worksteal

check: .venv/installed-test  ## format, lint, types, import table, doctests, then the suite
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py
	$(BIN)/python -m pytest -q --doctest-modules landscape optim
	$(MAKE) test

figures: demo  ## renew the README's pictures
	mkdir -p docs
	cp $(addprefix runs/demo/figures/,groups.png eigenvalue_histogram.png loss_surfaces.png) docs/

notebooks: .venv/installed-test  ## execute the notebooks in place
	$(BIN)/jupyter execute --inplace analysis_notebooks/*.ipynb

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: $(REQUIREMENTS) | .venv/bin/python
	$(INSTALL) --editable .
	touch $@

.venv/installed-test: $(REQUIREMENTS) | .venv/bin/python
	$(INSTALL) --editable '.[test]'
	$(INSTALL) --no-deps --requirement benchmarks/peers.txt
	touch $@ .venv/installed
