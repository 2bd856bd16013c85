# make demo              two minutes after installing: a claim decided, a model that forgets; ends with the paths of both pages
# make test | test-all   the quick tests | also the slow ones and the comparisons with peer libraries
# make lint | format | docs
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := equipoise-out/demo
export PYTHONDONTWRITEBYTECODE := $(if $(CI),1,)

.PHONY: demo test test-all lint format docs clean
.DEFAULT_GOAL := demo

$(VENV)/runtime: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Equipoise needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/development: $(VENV)/runtime
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	touch $@

$(VENV)/peers: $(VENV)/development
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group peers
	touch $@

$(VENV)/documentation: $(VENV)/runtime
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group docs
	touch $@

demo: $(VENV)/runtime
	@sh scripts/demo.sh $(BIN)/equipoise $(OUT)
	@echo 'To type commands of your own: . $(VENV)/bin/activate, then equipoise --help' >&2

test: $(VENV)/development
	$(BIN)/python -m pytest -q -m 'not slow' -n 2 --ignore=tests/parity

test-all: $(VENV)/peers
	$(BIN)/python -m pytest -q -n 2

lint: $(VENV)/development
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

format: $(VENV)/development
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/documentation
	$(BIN)/python scripts/published.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The site: site/index.html, which opens without a network"

clean:
	rm -rf $(VENV) site dist
