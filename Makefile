# Needs Python 3.10 to 3.13 and make. Everything goes into one virtual environment, .venv, which is
# made when a target first needs it and brought up to date when the pins or pyproject.toml change.

SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
# Tests wait more than they compute. A file's tests stay together: they share what they start.
WORKERS ?= -n 4 --dist loadfile --no-loadscope-reorder
BENCH_ARGS ?=
CHAOS ?= 40
FUZZ_ARGS ?=

IN_RANGE := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))

# python3, or where that is too old or too new the newest that fits.
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11 python3.10; do \
	"$$python" -c '$(IN_RANGE)' 2>/dev/null && { echo "$$python"; exit; }; done; echo python3)
endif
VERSION := $(shell "$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

# The stamp names the Python version, so that another PYTHON= makes another environment.
STAMP := $(VENV)/.installed-$(VERSION)
PINS := $(wildcard constraints/py$(VERSION).txt)

# An environment whose interpreter has gone (upgraded, or the checkout was copied) is made anew.
ifeq ($(shell "$(BIN)/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null),)
.PHONY: $(STAMP)
endif

# What programs use; `agentlace` brings in `agentlace.data`.
API := agentlace agentlace.config agentlace.data.demos agentlace.data.jaxrl_data_store \
	agentlace.data.rlds_writer agentlace.data.tfds agentlace.errors agentlace.gym_env \
	agentlace.logs agentlace.recorder agentlace.rlds agentlace.robot agentlace.trainer \
	agentlace.transport.embedded agentlace.transport.streams agentlace.vector_env

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz lint docs wheels chaos bench lerobot constraints clean python

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) ## Run the demo
	@$(BIN)/python examples/demo.py

test: $(STAMP) ## Run the tests (PYTEST_ARGS='-k name' narrows them)
	@$(BIN)/python -m pytest $(WORKERS) $(PYTEST_ARGS)

fuzz: $(STAMP) ## Send hostile frames for ten minutes (FUZZ_ARGS='--seconds 60 --seed 1')
	@$(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

lint: $(STAMP) ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP) ## Write the API reference into build/api
	@rm -rf build/api
	@$(BIN)/python -W error -m pdoc --docformat google --no-show-source --output-directory build/api $(API)
	@echo "==> build/api/index.html"

wheels: $(STAMP) ## Build sdist and wheel, and use the wheel on Python 3.10 and 3.13
	@$(BIN)/python .ci/wheels.py

chaos: $(STAMP) ## Kill, freeze, cut off and fill a whole system, for long (CHAOS=5: so many schedules)
	@AGENTLACE_CHAOS_SCHEDULES=$(CHAOS) AGENTLACE_CHAOS_STEPS=20 $(BIN)/python -m pytest tests/chaos -s

bench: $(STAMP) ## Run the benchmarks beside their peers (BENCH_ARGS=--list names the rows)
	@$(BIN)/python -m benchmarks --install $(BENCH_ARGS)

lerobot: python ## Test the converter to LeRobot, in an environment of its own
	@"$(PYTHON)" -m venv $(VENV)-lerobot
	@echo "==> installing lerobot (minutes, the first time)"
	@$(VENV)-lerobot/bin/python -m pip install $(PIP_SHOWN) 'lerobot[dataset]' '.[rlds]' pytest pytest-timeout
	@$(VENV)-lerobot/bin/python -m pytest tests/data/test_lerobot_format.py

constraints: python ## Pin today's newest versions for every supported Python
	@echo "==> resolving constraints/ (Linux on x86-64)"
	@rm -rf $(VENV)-pins && "$(PYTHON)" -m venv $(VENV)-pins
	@$(VENV)-pins/bin/python -m pip install $(PIP_QUIET) uv
	@set -e; for version in 3.10 3.11 3.12 3.13; do \
		file=constraints/py$$version.txt; \
		echo "# Every version that agentlace[all,dev] and its build bring in on Python $$version." > $$file.new; \
		echo "# Written by: make constraints" >> $$file.new; \
		printf 'editables\nhatchling\n' | $(VENV)-pins/bin/uv pip compile --quiet --no-header \
			--no-annotate --no-emit-index-url --no-emit-find-links --upgrade \
			--python-version $$version --python-platform x86_64-manylinux_2_28 \
			--extra all --extra dev pyproject.toml - >> $$file.new; \
		mv $$file.new $$file; \
		echo "    $$file: $$(grep -c == $$file) packages"; \
	done
	@rm -rf $(VENV)-pins

clean: ## Remove the environment, caches and built files
	rm -rf $(VENV) $(VENV)-pins $(VENV)-lerobot build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.git -prune -o -name __pycache__ -type d -exec rm -rf {} +

PIP_SHOWN := --disable-pip-version-check --no-input
PIP_QUIET := -qq $(PIP_SHOWN)

# The pins reach the isolated build of the package itself only through the environment:
# PIP_CONSTRAINT up to pip 25.2, PIP_BUILD_CONSTRAINT after.
$(STAMP): pyproject.toml hatch_build.py agentlace/_native.c agentlace/_version.py broker/redis.conf broker/users.acl $(PINS) | python
	@found=$$("$(BIN)/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); \
	if [ "$$found" != "$(VERSION)" ]; then \
		echo "==> making $(VENV) with Python $(VERSION)"; \
		rm -rf "$(VENV)" && "$(PYTHON)" -m venv "$(VENV)"; \
	fi
	@rm -f $(VENV)/.installed-*
	@if [ -n "$(PINS)" ]; then \
		echo "==> installing agentlace[dev] as pinned in $(PINS) (minutes, the first time)"; \
		export PIP_CONSTRAINT="$(PINS)" PIP_BUILD_CONSTRAINT="$(PINS)"; \
	else \
		echo "==> installing agentlace[dev]; no versions are pinned for Python $(VERSION)"; \
	fi; \
	$(BIN)/python -m pip install $(PIP_SHOWN) --editable '.[dev]'
	@touch $@

python:
	@if [ -z "$(VERSION)" ]; then \
		echo "No Python found as '$(PYTHON)'. Install Python 3.10 to 3.13, or name one: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "agentlace needs Python 3.10 to 3.13; '$(PYTHON)' is $(VERSION). Name another one: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	}
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "'$(PYTHON)' cannot make virtual environments. On Debian and Ubuntu: apt install python$(VERSION)-venv" >&2; \
		exit 1; \
	}
