# `make demo` and `make test` do all their set-up. CI calls the same targets.
.DEFAULT_GOAL := help
.PHONY: help demo screens dashboard test lint format proto bench soak fuzz audit lock setup setup-test clean

PY := .venv/bin/python
DEMO_PACKAGES := softhsm2 openssl
TEST_PACKAGES := $(DEMO_PACKAGES) gcc libc6-dev buildah mmdebstrap faketime +prometheus
SOAK_PACKAGES := $(DEMO_PACKAGES) gcc libc6-dev
BENCH_PACKAGES := $(DEMO_PACKAGES) gcc libc6-dev nghttp2-client nghttp2-server haproxy

help: ## show the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

demo: ## from nothing to a workload certificate signed in an HSM
	@scripts/setup.sh $(DEMO_PACKAGES)
	@$(PY) -m demo

screens: ## the pictures of docs/screens, from the real commands
	@scripts/setup.sh $(DEMO_PACKAGES) tmux
	@$(PY) -m demo.screens

dashboard: ## docs/screens/dashboard.svg, from the figures of a real Prometheus
	@scripts/setup.sh $(SOAK_PACKAGES) +prometheus
	@$(PY) -m demo.dashboard

test: ## every test, on real servers
	@scripts/setup.sh $(TEST_PACKAGES)
	@$(PY) -m pytest -n auto --dist loadfile

lint: setup ## formatting, lint, types, stubs
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PY) proto/generate.py --check

format: setup ## format and fix what can be fixed
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

proto: setup ## regenerate the stubs of the wire contracts
	@$(PY) proto/generate.py

bench: ## the measurements, side by side in one run
	@scripts/setup.sh $(BENCH_PACKAGES)
	@$(PY) -m bench

soak: ## the whole system under load and faults; MINUTES=10 SEED=1
	@scripts/setup.sh $(SOAK_PACKAGES)
	@$(PY) -m chaos --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

fuzz: setup ## hostile inputs at random, round after round; MINUTES=10
	@$(PY) -m tests.fuzz --minutes $(or $(MINUTES),10)

audit: setup ## known vulnerabilities of what is locked (needs the network)
	@scripts/audit.sh

lock: setup ## resolve the dependencies anew
	@scripts/lock.sh

setup:
	@scripts/setup.sh

clean: ## remove what the targets made
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
