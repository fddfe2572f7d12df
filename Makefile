# Short names for what is done every day; `make check test` is what the gate runs.
BIN := .venv/bin
GENERATED := README.md docs/commands.md docs/concepts.md docs/moecli.1
unexport PYTHONDONTWRITEBYTECODE  # modules are compiled once, not by every process of every test

.PHONY: check fast test docs bench fuzz mutants

check:  ## lint, types, import order, and whether generated docs are fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror moecli/kernels/c/*.[ch] moecli/kernels/c/*/*.[ch] tests/native/*.c tests/support/*.c
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/cog -I .ci --check $(GENERATED)

fast:  ## the tests that take no minute
	$(BIN)/pytest -q -m "not slow"

test:  ## all tests
	$(BIN)/pytest

docs:  ## write the generated parts of README.md and docs/ anew
	$(BIN)/cog -I .ci -r $(GENERATED)

bench:  ## speed and peak memory on this machine
	$(BIN)/moecli bench tiny --dtype q4
	$(BIN)/python -m benchmarks.memory

fuzz:  ## 200,000 damaged inputs, about an hour on two cores
	$(BIN)/python -m tests.fuzz --cases 200000

mutants:  ## small mistakes in the code, and whether a test notices each: docs/testing.md (ROOM=journal SAMPLE=40)
	$(BIN)/pip install -q -c constraints.txt -e ".[mutants]"
	$(BIN)/python .ci/mutants.py $(ROOM) --sample $(or $(SAMPLE),60)
