# Everything a newcomer or a CI machine runs. `make` alone lists the targets.

PYTHON ?= python3
ENGINE ?= auto
CONFIG ?= deploy/slo.yaml
MODEL ?=
ARGS ?=

VENV := .venv/bin
QUICK := not engine and not ray and not slow and not gpu
# The others, but those for a GPU only where there is one.
OTHERS = not ($(QUICK))$(if $(shell nvidia-smi -L 2>/dev/null | grep '^GPU '),, and not gpu)
# Tests start some hundred processes; without bytecode on disk each would compile all it imports.
check test: export PYTHONDONTWRITEBYTECODE :=
PROTOS = $(shell find proto -name '*.proto')

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev compile serve model fmt lint type test check proto bench-smoke bench-router bench-kv bench-fleet bench-pd-or-pool torture clean clean-all

help: ## list the targets
	@echo "make serve is all you need to start; it sets up the checkout first."
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' Makefile
	@echo "Settings: CONFIG=file.yaml  MODEL=folder-or-hub-id  ARGS='--set key=value'  ENGINE=auto|cpu|cuda|none  PYTHON=python3.12"

setup: ## make .venv with the engine that fits this machine (once; then instant)
	@$(PYTHON) deploy/setup.py --engine $(ENGINE)

setup-dev: ## as setup, with what tests and checks need
	@$(PYTHON) deploy/setup.py --engine $(ENGINE) --dev

compile: setup ## make machine code of the router's hot modules again, after changes (set-up has done it once)
	$(VENV)/python -m router.compile

serve: setup ## serve an OpenAI-compatible API here (CONFIG=, MODEL=, ARGS=)
	@exec $(VENV)/python baton.py up $(if $(CONFIG),"$(CONFIG)") --foreground $(if $(MODEL),--model "$(MODEL)") $(ARGS)

model: setup ## train the demonstration model again (34 minutes on two busy cores)
	$(VENV)/python -m engine.demo_model

fmt: setup-dev ## format the code and repair what ruff can
	$(VENV)/ruff format .
	$(VENV)/ruff check --fix .

lint: setup-dev ## look for mistakes and wrong format
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .

type: setup-dev ## check the types
	$(VENV)/mypy

check: lint type ## what every commit must pass: lint, types, quick tests
	$(VENV)/python -m pytest -n auto -m "$(QUICK)"

test: setup-dev ## all tests, with real engines and Ray
	$(VENV)/python -m pytest -n auto -m "$(QUICK)"
	$(VENV)/python -m pytest -n 2 -m "$(OTHERS)"

proto: setup-dev ## generate the protobuf modules again
	$(VENV)/python -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. $(PROTOS)

bench-smoke: setup ## a short benchmark that shows all is well
	$(VENV)/python -m bench.smoke

bench-router: compile ## the router beside sglang-router and vllm-router (ARGS='--rounds 5 --nice -15')
	$(VENV)/python -m bench.router $(ARGS)

bench-kv: setup ## the KV hand-over beside memcpy, sockets and NIXL (ARGS='--rounds 5 --sizes 64 512')
	$(VENV)/python -m bench.kv $(ARGS)

bench-fleet: setup ## goodput of 8 and 64 simulated GPUs, Baton beside others (ARGS='--quick', ARGS='--data DIR')
	$(VENV)/python -m bench.fleet $(ARGS)

bench-pd-or-pool: setup ## P/D or one pool on two cores, measured and planned (ARGS='--model demo')
	$(VENV)/python -m bench.pd_or_pool $(ARGS)

torture: setup ## 20,000 KV hand-overs while everything breaks (ARGS='--handovers 1000 --seed 2')
	$(VENV)/python -m bench.torture $(ARGS)

clean: ## remove caches and what runs left behind
	rm -rf .baton .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

clean-all: clean ## and the environment
	rm -rf .venv
