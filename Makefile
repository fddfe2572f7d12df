# Short names for what is done every day; `make check test` is what the gate runs.
BIN := .venv/bin
unexport PYTHONDONTWRITEBYTECODE  # modules are compiled once, not by every process of every test

.PHONY: check fast test docs bench

check:  ## lint, types, import order, and whether generated docs are fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/cog -I .ci --check README.md

fast:  ## the tests that take no minute
	$(BIN)/pytest -q -m "not slow"

test:  ## all tests
	$(BIN)/pytest

docs:  ## write the generated parts of README.md and docs/ anew
	$(BIN)/cog -I .ci -r README.md

bench:  ## speed and peak memory on this machine
	$(BIN)/moecli bench tiny --dtype q4
	$(BIN)/python -m benchmarks.memory
