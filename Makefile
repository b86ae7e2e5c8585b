# For a fresh machine with Python >= 3.11, its headers and a C compiler: `make demo`, `make test`, and `make soak`, which
# kills, freezes and cuts off a fleet for MINUTES and says what did not hold.
PYTHON ?= python3
VENV ?= .venv
PROCS ?= 2
EXECUTIONS ?= 20000
JOBS ?= 4
MINUTES ?= 30
SEED ?=
ALONE := tests/chaos tests/race tests/integration/test_bench.py

SOURCES := pyproject.toml setup.py $(wildcard zart/*.pyx)
INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-input

.PHONY: demo test soak lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	@$(VENV)/bin/zart demo --procs $(PROCS) --executions $(EXECUTIONS)

# Most tests wait most of the time, so several run at once. What takes a whole machine runs alone.
test: $(VENV)/.test
	@status=0; \
	$(VENV)/bin/python -m pytest -q -n $(JOBS) $(addprefix --ignore=,$(ALONE)) $(PYTEST) || status=$$?; \
	$(VENV)/bin/python -m pytest -q $(ALONE) $(PYTEST) || status=$$?; \
	exit $$status

soak: $(VENV)/.test
	@$(VENV)/bin/python -m tests.chaos.soak --minutes $(MINUTES) $(addprefix --seed ,$(SEED))

lint: $(VENV)/.lint
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info zart/_fastpath.c zart/_fastpath*.so

$(VENV)/bin/python:
	@$(PYTHON) .ci/check_python.py
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(SOURCES) | $(VENV)/bin/python
	@echo "building and installing zart into $(VENV)"
	@$(INSTALL) --editable '.[embedded]'
	@touch $@

$(VENV)/.test: $(SOURCES) | $(VENV)/bin/python
	@echo "building and installing zart with its test dependencies into $(VENV)"
	@$(INSTALL) --editable '.[test]'
	@touch $(VENV)/.demo $@

$(VENV)/.lint: $(SOURCES) | $(VENV)/bin/python
	@echo "building and installing zart with its tools into $(VENV)"
	@$(INSTALL) --editable '.[lint]'
	@touch $(VENV)/.demo $(VENV)/.test $@
