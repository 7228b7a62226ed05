PYTHON ?= python3
BIN := .venv/bin
WAIT ?= 1

.PHONY: setup browser demo test lint

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch .venv/ready

# What tests of the page need beside Python; as root where it is missing.
browser:
	command -v chromium && command -v curl || (apt-get update && apt-get install -y --no-install-recommends chromium curl)

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
