# What to do with this tree. `make help` lists the targets; docs/building.md has the longer story.
#
# A fresh Debian machine needs git, make, g++ and python3 (>= 3.11, with venv). Everything else comes into .venv/ and build/,
# and nothing that is done is done again.

MAKEFLAGS += --no-builtin-rules --no-print-directory
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

PYTHON ?= python3
ARGS ?=
# More for CMake: make build CMAKE_FLAGS="-DGGML_CUDA=ON"
CMAKE_FLAGS ?=
# llama-cpp-python's source distribution, when it is on this host already
SDIST ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet --quiet
LOCK := requirements-dev.lock
TREE := third_party/llama.cpp
LIBRARY := build/libllama.so
STAMP := build/libllama.stamp.json
JOBS := $(shell nproc 2>/dev/null || echo 2)

# The host's cmake, else one from the package index; ninja where the host has it, else make.
CMAKE := $(or $(shell command -v cmake),$(VENV)/bin/cmake)
CMAKE_GENERATOR ?= $(if $(shell command -v ninja),Ninja,Unix Makefiles)
export CMAKE_GENERATOR

# The rows of the lock file for some packages: $(call pick,NAME|NAME); $(call pick_not,...) for all others.
pick = awk '/^[a-z]/ { on = /^($(1))==/ } on' $(LOCK)
pick_not = awk '/^[a-z]/ { on = !/^($(1))==/ } on' $(LOCK)
TOOLS_ON_DEMAND := cmake|uv

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo '  Also: ARGS="..." for run, test, bench, soak; SDIST=FILE for fetch; CMAKE_FLAGS="-DGGML_CUDA=ON" for build; PYTHON=python3.12'

# -- Python -------------------------------------------------------------------------------------------------------------

# The environment with PyYAML, all that modeld needs at run time.
$(VENV)/runtime: $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11; name another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "making $(VENV)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(call pick,pyyaml) > $@.txt
	@$(PIP) install --require-hashes --no-deps -r $@.txt
	@touch $@

# What developing needs on top, from the lock, hashes compared.
$(VENV)/dev: $(VENV)/runtime
	@echo "installing the development tools into $(VENV)"
	@$(call pick_not,$(TOOLS_ON_DEMAND)) > $@.txt
	@$(PIP) install --require-hashes --no-deps -r $@.txt
	@touch $@

$(VENV)/bin/cmake: | $(VENV)/runtime
	@echo "this host has no cmake: installing it into $(VENV)"
	@$(call pick,cmake) > $(VENV)/cmake.txt
	@$(PIP) install --require-hashes --no-deps -r $(VENV)/cmake.txt

$(VENV)/bin/uv: | $(VENV)/runtime
	@$(call pick,uv) > $(VENV)/uv.txt
	@$(PIP) install --require-hashes --no-deps -r $(VENV)/uv.txt

# What the tests of the official Node client need; where npm is missing, or cannot install, they are skipped and say so.
NODE_CLIENT := tests/node/node_modules/.package-lock.json

$(NODE_CLIENT): tests/node/package.json tests/node/package-lock.json
	@echo "installing the Node client that the tests use"
	@cd tests/node && { npm ci --ignore-scripts --no-audit --no-fund --loglevel=error || echo "npm ci failed: the tests of the Node client will be skipped" >&2; }

# Requests from gunicorn's tests, which ours replay; without a way to the package index these tests are skipped and say so.
CORPORA := build/corpora/fetched

$(CORPORA): third_party/gunicorn.lock scripts/fetch_corpora.py scripts/sdist.py | $(VENV)/runtime
	@mkdir -p $(@D)
	@$(PY) -m scripts.fetch_corpora && touch $@ || echo "the tests that replay gunicorn's corpora will be skipped" >&2

# -- llama.cpp ------------------------------------------------------------------------------------------------------------

.PHONY: fetch
fetch: build/fetched ## bring the pinned llama.cpp into third_party/ (77 MB), unless a tree is there

# Missing: build/fetched brings it.
$(TREE)/include/llama.h: ;

build/fetched: third_party/llama.cpp.lock scripts/fetch_llama.py scripts/sdist.py $(TREE)/include/llama.h | $(VENV)/runtime
	@mkdir -p build
	@$(PY) -m scripts.fetch_llama $(if $(SDIST),--sdist "$(SDIST)")
	@touch $@

# A library for each kind of CPU, best first (modeld/llm/variants.py); all of them in one tree, which compiles once what they share.
VARIANTS ?= x86-64-amx x86-64-v4 x86-64-v3 x86-64-v2
UNTESTED ?=
SPACE := $(subst ,, )

.PHONY: build library
build: library bin/modeld ## build build/libllama.so and bin/modeld, one executable file

library: $(STAMP)

# The options of the last configuration: other CMAKE_FLAGS configure anew.
build/cmake-flags: force | build/fetched
	@echo '$(CMAKE) $(CMAKE_GENERATOR) $(CMAKE_FLAGS)' | cmp -s - $@ || echo '$(CMAKE) $(CMAKE_GENERATOR) $(CMAKE_FLAGS)' > $@

.PHONY: force
force:

build/configured: build/cmake-flags build/fetched CMakeLists.txt $(wildcard cmake/*) $(filter-out /%,$(CMAKE)) | $(VENV)/runtime
	@grep -qsF 'CMAKE_GENERATOR:INTERNAL=$(CMAKE_GENERATOR)' build/CMakeCache.txt || rm -rf build/CMakeCache.txt build/CMakeFiles
	@echo "configuring with $(CMAKE), $(CMAKE_GENERATOR) $(CMAKE_FLAGS)"
	@$(CMAKE) -S . -B build -DPython3_EXECUTABLE="$(abspath $(PY))" $(CMAKE_FLAGS) > build/cmake.log 2>&1 \
		|| { tail -n 40 build/cmake.log >&2; echo "configuring failed; all of it is in build/cmake.log" >&2; exit 1; }
	@touch $@

# Built, then tested in a process of its own, and stamped only then: the loader refuses a library without its stamp.
$(STAMP): build/configured modeld/llm/libllama.py modeld/llm/abi.py modeld/llm/selftest.py modeld/llm/reference.py modeld/llm/stamp.py models/selftest.json
	@rm -f $@
	@$(CMAKE) --build build --target libllama --parallel $(JOBS)
	@$(PY) -m modeld.llm.selftest $(LIBRARY)
	@$(PY) -m modeld.llm.stamp $(LIBRARY) --llama-h $(TREE)/include/llama.h --layout-check build/layout_check.c --flags build/libllama.flags

build/variants-flags: force | build/fetched
	@echo '$(CMAKE) $(CMAKE_GENERATOR) $(VARIANTS) $(CMAKE_FLAGS)' | cmp -s - $@ || echo '$(CMAKE) $(CMAKE_GENERATOR) $(VARIANTS) $(CMAKE_FLAGS)' > $@

build/variants/configured: build/variants-flags build/fetched CMakeLists.txt $(wildcard cmake/*) $(filter-out /%,$(CMAKE)) | $(VENV)/runtime
	@mkdir -p $(@D)
	@grep -qsF 'CMAKE_GENERATOR:INTERNAL=$(CMAKE_GENERATOR)' $(@D)/CMakeCache.txt || rm -rf $(@D)/CMakeCache.txt $(@D)/CMakeFiles
	@echo "configuring $(VARIANTS)"
	@$(CMAKE) -S . -B $(@D) -DPython3_EXECUTABLE="$(abspath $(PY))" '-DMODELD_VARIANTS=$(subst $(SPACE),;,$(strip $(VARIANTS)))' $(CMAKE_FLAGS) \
		> build/variants/cmake.log 2>&1 || { tail -n 40 build/variants/cmake.log >&2; exit 1; }
	@rm -rf build/release
	@touch $@

# As above: tested, then stamped.
build/release/%/libllama.stamp.json: build/variants/configured modeld/llm/libllama.py modeld/llm/abi.py modeld/llm/selftest.py \
		modeld/llm/reference.py modeld/llm/stamp.py models/selftest.json scripts/variant.py
	@$(CMAKE) --build build/variants --target libllama-$* --parallel $(JOBS)
	@$(PY) -m scripts.variant build/variants/$* $(@D) --llama-h $(TREE)/include/llama.h \
		--layout-check build/variants/layout_check.c $(if $(UNTESTED),--untested)

.PHONY: release
release: $(VARIANTS:%=build/release/%/libllama.stamp.json) ## build a library for each kind of CPU into build/release/; VARIANTS="x86-64-v3 ..."

# What scripts/bundle.py packs: code, the page for browsers, and what lies beside.
PACKED := $(shell find modeld -type f '(' -name '*.py' -o -name '*.json' -o -path 'modeld/httpapi/page/*' ')')

bin/modeld: $(STAMP) scripts/bundle.py scripts/licenses.py models/selftest.json models/demo-calc.gguf deploy/modeld.service $(PACKED) | $(VENV)/runtime
	@$(PY) scripts/bundle.py $@

# The set of libraries that is handed over; another folder is taken as it is.
LIBRARIES ?= build/release
DIST_NEEDS := $(if $(filter build/release,$(LIBRARIES)),release) $(VENV)/dev

.PHONY: dist
dist: $(DIST_NEEDS) ## make all that is handed over into dist/: one file, wheels, Debian package, airgap bundle; LIBRARIES=FOLDER
	@$(PY) -m scripts.dist --libraries $(LIBRARIES) $(ARGS)

.PHONY: distcheck
distcheck: $(VENV)/dev ## make release dist in two folders from nothing and compare; ARGS="--libraries build/release" without the build
	@$(PY) -m scripts.dist.twice $(ARGS)

# -- everyday -----------------------------------------------------------------------------------------------------------

.PHONY: run
run: library ## serve the models of configs/models.yaml in the foreground; ARGS="--port 0" and so on
	@exec $(PY) -m modeld serve $(ARGS)

.PHONY: test
test: build $(VENV)/dev $(CORPORA) $(if $(shell command -v npm),$(NODE_CLIENT)) ## run the whole test suite; ARGS="-k name" for a part
	@$(PY) -m pytest -m "not soak" $(ARGS)

.PHONY: soak
soak: build $(VENV)/dev ## run the long tests; MODELD_SOAK_S=3600 for an hour
	@$(PY) -m pytest -m soak --timeout 0 $(ARGS)

# What fuzz/ has, and seconds for each.
FUZZ ?= config gguf head request
FUZZ_S ?= 60

.PHONY: fuzz
fuzz: $(VENV)/dev ## fuzz what reads bytes from outside, and print what was reached; FUZZ=head for one, FUZZ_S=600 for ten minutes
	@$(PY) -m fuzz --seconds $(FUZZ_S) $(FUZZ)

.PHONY: lint
lint: $(VENV)/dev ## ruff and mypy --strict
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy

.PHONY: tidy
tidy: $(VENV)/dev $(VENV)/bin/uv ## format, fix what can be fixed, refresh the lock of the development dependencies
	@$(VENV)/bin/ruff check --fix --exit-zero --quiet
	@$(VENV)/bin/ruff format
	@$(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header requirements-dev.in -o $(LOCK)

.PHONY: bench
bench: library $(VENV)/dev ## measure; ARGS="--help" tells what there is
	@$(PY) -m bench $(ARGS)

.PHONY: clean
clean: ## remove what was built; third_party/llama.cpp, .venv, the Node client and the benchmark models stay
	rm -rf build bin dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -not -path './third_party/*' -prune -exec rm -rf {} +
