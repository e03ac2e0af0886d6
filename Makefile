# Two commands matter: make run, make test. Both prepare what they need.
PYTHON ?= python3
BIN := .venv/bin
# -P of pytest workers stays low: real processes, a real broker and a real browser share the box.
TESTS ?= tests

.PHONY: run test check bench clean-demo env dev-env test-faults story format docs

run: env
	@$(BIN)/python docs/examples/three_sites/story.py

clean-demo:
	@rm -rf .demo && echo "the demo's state is gone; make run starts over"

test: dev-env
	@$(BIN)/python -m pytest $(TESTS) -m "not slow" -p no:cacheprovider

check: dev-env
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m pytest -q tests/house
	@$(BIN)/python tests/house/report.py

bench: dev-env
	@$(BIN)/python tests/bench/run.py

# Slow suites, run before a release: seeded faults on a real replay, many rounds.
test-faults: dev-env
	@$(BIN)/python -m pytest tests -m slow -p no:cacheprovider

story: env
	@SPEED=0 EXIT=1 $(BIN)/python docs/examples/three_sites/story.py

format: dev-env
	@$(BIN)/python -m ruff check --fix . ; $(BIN)/python -m ruff format .

env:
	@$(PYTHON) packaging/setup_env.py run

dev-env:
	@$(PYTHON) packaging/setup_env.py test
