PYTHON ?= python3
BIN := .venv/bin
WAIT ?= 1

.PHONY: setup demo test lint

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch .venv/ready

demo: setup
	$(BIN)/kinfolk demo $(if $(filter 0,$(WAIT)),--no-wait,--wait)

test: setup
	$(BIN)/pytest --numprocesses 2 -m "not on_ray"
	$(BIN)/pytest -m on_ray

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
