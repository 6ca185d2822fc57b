# make build | quick | test | bench | lint | format | docs | record | readme | sanitize | symbols
#   | wheel-check | fake-gpu | clean
#
# Where $(PYTHON) has torch >= 2.11, that environment is used as it is: nothing is installed in it.
# Elsewhere, and where it is .venv, each target installs in .venv what it needs: tools/environment.py.

PYTHON ?= python3
TEST_ARGS ?=
# Processes that test at a time.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
BENCH_ARGS ?=

RUN := $(shell $(PYTHON) tools/environment.py python)
NEED := @$(PYTHON) tools/environment.py need

.PHONY: build testing-build quick test bench record readme docs lint format sanitize symbols \
  wheel-check fake-gpu clean
.DELETE_ON_ERROR:

# --- Build, test, measure ---

build:
	$(NEED) torch build
	@$(RUN) tools/build.py

testing-build:
	$(NEED) torch build test
	@$(RUN) tools/build.py --testing

# Some cases of each test, in less than two minutes.
quick: testing-build
	$(RUN) -m pytest -n $(JOBS) --quick $(TEST_ARGS)

test: testing-build
	$(NEED) test --also bench docs examples
	$(RUN) -m pytest -n $(JOBS) $(TEST_ARGS)

bench: build
	$(NEED) build --also bench
	$(RUN) -m benchmarks $(BENCH_ARGS)

# Every operation, shape and sweep into benchmarks/results/, which takes hours, then README from it.
# RECORD_THREADS=1 RECORD_ARGS="--op causal": a part of it, which replaces that part of README.
RECORD_THREADS ?= 1,2
RECORD_BUDGET ?= 1
RECORD_ARGS ?=

record: build
	$(NEED) bench
	$(RUN) -m benchmarks --full --dtype float32,bfloat16 --sweep all --threads $(RECORD_THREADS) \
	  --budget $(RECORD_BUDGET) --save benchmarks/results $(RECORD_ARGS)
	$(RUN) -m benchmarks.readme

# What README and docs/ hold of recorded results and of the code.
readme: build
	$(NEED) bench
	$(RUN) -m benchmarks.readme

# Pages in build/docs; a warning is an error.
docs:
	$(NEED) torch docs
	$(RUN) -m sphinx -q -W -d build/doctrees docs build/docs
	@echo "open build/docs/index.html"

# --- Checks of the code ---

CPP_FILES = $(shell find csrc benchmarks tests -name '*.h' -o -name '*.c' -o -name '*.cpp' \
  -o -name '*.inc' -o -name '*.cu')
CLANG_FORMAT = $(RUN) -c 'import clang_format; clang_format.clang_format()'

lint:
	$(NEED) tools
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	@$(CLANG_FORMAT) --dry-run --Werror $(CPP_FILES)

format:
	$(NEED) tools
	$(RUN) -m ruff check --fix-only .
	$(RUN) -m ruff format .
	$(CLANG_FORMAT) -i $(CPP_FILES)

# What each instruction set's object file, and the library, may export and need.
symbols: build
	$(RUN) tools/check_symbols.py

# The wheel, installed in an environment of its own, works away from this folder.
wheel-check:
	$(NEED) torch build
	$(RUN) tools/check_wheel.py

# A Python with the CUDA build of torch and no GPU: tests/fake_gpu/README.md.
fake-gpu:
	$(PYTHON) tests/fake_gpu/build.py

# The kernels without torch, under the sanitizers, as C++17. CXX chooses the compiler.
SANITIZED := build/sanitize
SELFTEST := csrc/selftest.cpp $(wildcard csrc/cpu/*.cpp)
address = -fsanitize=address,undefined -fno-sanitize-recover=all
thread = -fsanitize=thread
# ThreadSanitizer of older compilers dies where addresses are too random.
FIXED_ADDRESSES = $(shell setarch -R true 2>/dev/null && echo setarch -R)

sanitize:
	$(MAKE) $(SANITIZED)/address/selftest
	$(SANITIZED)/address/selftest
	@mkdir -p $(SANITIZED)/thread
	@if echo 'int main() {}' | $(CXX) -x c++ $(thread) -o $(SANITIZED)/thread/probe - && \
	    $(FIXED_ADDRESSES) $(SANITIZED)/thread/probe; then \
	  $(MAKE) $(SANITIZED)/thread/selftest && $(FIXED_ADDRESSES) $(SANITIZED)/thread/selftest; \
	else \
	  echo "ThreadSanitizer does not work on this machine: not run"; \
	fi

define SANITIZER
$(SANITIZED)/$(1)/selftest: $$(SELFTEST:%.cpp=$(SANITIZED)/$(1)/%.o)
	$$(CXX) $$($(1)) -pthread -o $$@ $$^

$(SANITIZED)/$(1)/%.o: %.cpp Makefile
	@mkdir -p $$(dir $$@)
	$$(CXX) -std=c++17 -O1 -g -fno-omit-frame-pointer -Wall -Wno-psabi -pthread -Icsrc $$($(1)) \
	  -MMD -MP -c -o $$@ $$<
endef
$(eval $(call SANITIZER,address))
$(eval $(call SANITIZER,thread))
-include $(shell find $(SANITIZED) -name '*.d' 2>/dev/null)

clean:
	rm -rf build dist *.egg-info attn_kernels/*.so .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
