PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CXX_FILES := $(foreach folder,moeprof/native moeprof/native/cuda tests/native,$(foreach type,cpp hpp cu cuh,$(wildcard $(folder)/*.$(type))))
NATIVE := CMakeLists.txt $(CXX_FILES)
# Known to work together; an unpinned torch would bring gigabytes on machines without a GPU.
KNOWN := torch==2.13.0 transformers==5.24.0
# CUDA architectures: those of the devices here; one to compile for where there is none.
CUDA ?= $(if $(shell command -v nvidia-smi),AUTO,90-real)

.PHONY: setup demo test test-rest test-all cuda sanitize neon lint format clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else "error: moeprof needs Python 3.11 to 3.13, this is " + sys.version.split()[0] + "\nhint: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { echo "hint: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/pip install --quiet $(KNOWN)
	$(BIN)/pip install --quiet --config-settings cmake.define.MOEPROF_CUDA_ARCHITECTURES=$(CUDA) --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/moeprof demo --force

test: lint
	$(BIN)/pytest -n auto -m "not all"

test-all: test test-rest

# What `make test` leaves out: the whole of what it samples.
test-rest: setup
	$(BIN)/pytest -n auto -m all

# Every CUDA source for every architecture; no device is needed.
cuda: setup
	rm -rf build/cuda
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/cuda --config-settings cmake.define.MOEPROF_CUDA=ON \
	  --config-settings cmake.define.MOEPROF_CUDA_ARCHITECTURES=ALL .

# The native core without Python: memory and undefined behaviour, then races.
sanitize: setup
	for sanitizers in address,undefined thread; do \
	  $(BIN)/cmake -S . -B build/sanitize-$$sanitizers -DMOEPROF_SANITIZE=$$sanitizers >/dev/null && \
	  $(BIN)/cmake --build build/sanitize-$$sanitizers --parallel 2 && \
	  build/sanitize-$$sanitizers/sanitize || exit 1; \
	done

# The path for Arm processors, by a cross compiler and in an emulator: the bits of this machine.
NEON := -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
neon: setup
	@command -v aarch64-linux-gnu-g++ qemu-aarch64 >/dev/null || { echo "hint: apt-get install g++-aarch64-linux-gnu qemu-user" >&2; exit 1; }
	$(BIN)/cmake -S . -B build/neon $(NEON) -DMOEPROF_SANITIZE=undefined >/dev/null
	$(BIN)/cmake --build build/neon --parallel 2
	$(BIN)/cmake -S . -B build/beside-neon -DMOEPROF_SANITIZE=undefined >/dev/null
	$(BIN)/cmake --build build/beside-neon --parallel 2
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/neon/sanitize | tee build/neon/said
	grep -q ' neon$$' build/neon/said
	build/beside-neon/sanitize | grep bits | grep -Fxf - build/neon/said

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf $(VENV) build moeprof-demo
