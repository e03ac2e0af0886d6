# Two commands matter: make run, make test. Both prepare what they need.
PYTHON ?= python3
BIN := .venv/bin
TESTS ?= tests
WORKERS ?= 3
DEMO_DIR ?= .demo

.PHONY: run test check bench bench-peers clean-demo env dev-env test-faults test-slow test-net test-fleet test-postgres story format python

run: env
	@$(BIN)/python docs/examples/three_sites/story.py

clean-demo:
	@if [ -e "$(DEMO_DIR)/lock" ] && ! flock -n "$(DEMO_DIR)/lock" true; then \
	echo "error: a demo is running on $(DEMO_DIR): end it first, with Ctrl-C there" >&2; exit 1; fi
	@rm -rf "$(DEMO_DIR)" && echo "the demo's state is gone; make run starts over"

test: dev-env
	@$(BIN)/python -m pytest $(TESTS) -m "not slow" -p no:cacheprovider -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: dev-env
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m pytest -q tests/house
	@$(BIN)/python tests/house/report.py

bench: dev-env
	@$(BIN)/python tests/bench/run.py

# Beside other servers, each in an environment of its own under build/peers (installed at the first run).
bench-peers: dev-env
	@$(BIN)/python tests/bench/bench_peers.py

# What goes wrong in a real update, each fault a row of one table (build/bench/faults.json): FAULTS='disk or clock'
# chooses rows by pytest's -k. All of them take about 20 minutes on two quiet cores.
FAULTS ?=
test-faults: dev-env
	@$(BIN)/python -m pytest tests/faults -m slow -k "$(FAULTS)" -p no:cacheprovider

# The other slow suites, run before a release: renewals, revocation, many rounds of kills.
test-slow: dev-env
	@$(BIN)/python -m pytest tests -m slow --ignore tests/faults -p no:cacheprovider

# Bad networks in network namespaces of their own (root, iproute2); skipped, with the reason, where none may be made.
test-net: dev-env
	@$(BIN)/python -m pytest -s -m slow tests/integration/test_link_faults.py -p no:cacheprovider

# Thousands of histories of simulated fleets: the rollout machine and the agents' own, under seeded faults, and hundreds
# with all of the product inside. CPU, by samples: 0.17 s for each of 3,000 of the first kind (8 minutes), 4 s for each of
# 30 of a thousand boxes (2), 3.3 s for each of 150 of the second (8), 1 for the walk over a rollout's states, and some 5
# for the planted mistakes. A machine that is shared takes twice as long.
FLEET_SEEDS ?= 3000
FLEET_WHOLE_SEEDS ?= 150
test-fleet: dev-env
	@FLEET_SEEDS=$(FLEET_SEEDS) FLEET_WHOLE_SEEDS=$(FLEET_WHOLE_SEEDS) $(BIN)/python -m pytest tests/fleet -p no:cacheprovider --timeout 7200

# All of the hub's tests, and what only PostgreSQL does, on a PostgreSQL of their own.
test-postgres: dev-env
	@HUB_STORE=postgres $(BIN)/python -m pytest tests/hub tests/integration/test_hub_postgres.py -p no:cacheprovider

story: env
	@SPEED=0 EXIT=1 $(BIN)/python docs/examples/three_sites/story.py

format: dev-env
	@$(BIN)/python -m ruff check --fix . ; $(BIN)/python -m ruff format .

python:
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) here: install Python 3.11 or newer (Debian: apt-get \
	install python3 python3-venv make) or name one: make PYTHON=/path/to/python3 …" >&2; exit 1; }

env: python
	@$(PYTHON) packaging/setup_env.py run

dev-env: python
	@$(PYTHON) packaging/setup_env.py test
