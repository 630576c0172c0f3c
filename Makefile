# Tessera: `make run` builds everything and serves four real models; `make test` shows that it works.
# Every target installs what it lacks, into $(TESSERA_CACHE), and is quick when nothing is missing.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

export TESSERA_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tessera
export TESSERA_HOME ?= .tessera
export TESSERA_LISTEN ?= 127.0.0.1:8080

# A CI machine may keep the cache but never the clone, so its build lives with the cache.
ifeq ($(CARGO_TARGET_DIR),)
  override CARGO_TARGET_DIR := $(if $(CI),$(TESSERA_CACHE),$(CURDIR))/target
endif
override CARGO_TARGET_DIR := $(abspath $(CARGO_TARGET_DIR))
export CARGO_TARGET_DIR

# Where the set-up puts uv if there is none: `tessera build` wants it too.
export PATH := $(PATH):$(TESSERA_CACHE)/uv/bin

# Where the tests and benches find what was built and installed.
export TESSERA_BIN := $(CARGO_TARGET_DIR)/release/tessera
export TESSERA_GUESTS := $(CARGO_TARGET_DIR)/guests
export TESSERA_MODELS := $(TESSERA_CACHE)/models
export TESSERA_PYTHON := $(TESSERA_CACHE)/python/bin/python
export TESSERA_PYTHON_SDK := $(TESSERA_CACHE)/python-sdk/bin/python

# What is built of llama.cpp for one profile serves the other too.
export CMAKE_C_COMPILER_LAUNCHER := ccache
export CMAKE_CXX_COMPILER_LAUNCHER := ccache
export CCACHE_DIR := $(TESSERA_CACHE)/ccache

SETUP := guest-examples/setup.sh

.PHONY: help run test schema conformance bench release setup guests build dist lint clippy fmt iris clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# What is run and measured is the optimised build; the tests' own takes a quarter of the time to link.
run bench: export TESSERA_BIN := $(CARGO_TARGET_DIR)/dist/tessera

run: dist ## Build, serve on TESSERA_LISTEN (127.0.0.1:8080), deploy four models, stay up until Ctrl-C
	@$(SETUP) onnxruntime iris minilm filetype smollm2
	@exec guest-examples/run-demo.sh

# Three calls, because cargo unites the features of all packages that it builds at once: with the others beside it, every
# dependency of the server would be compiled a second time.
test: setup build ## Run all tests: native, over HTTP, through real Python clients
	cargo test --release -p tessera --features llama
	cargo test --release -p tessera-sdk -p tessera-componentize -p tessera-scoring -p tessera-embeddings -p tessera-openai \
		-p tessera-chat -p tessera-encoder -p tessera-classification -p filetype -p imagenet -p iris-rust -p ocr -p rerank -p vad --features tessera-sdk/ndarray
	@tests/python/open-inference.sh
	@tests/wasmtime.sh
	cargo test --release -p tessera-tests
	@tests/conformance/run.sh 60
	cd sdk/python && $(TESSERA_PYTHON_SDK) -m mypy && OMP_NUM_THREADS=1 $(TESSERA_PYTHON_SDK) -m pytest -q

schema: build ## Ask a server all that its OpenAPI document allows, and more (schemathesis, about a minute)
	@$(SETUP) python
	@tests/schemathesis.sh

conformance: build ## The ONNX project's operator cases through a guest, on both backends; llama.cpp's own answers (ten minutes)
	@$(SETUP) onnxruntime smollm2 python
	@tests/conformance/run.sh
	ORACLE_PROMPTS=50 cargo test --release -p tessera-tests -- greedy_answers_are_those

# The baselines are built apart from the server, so that neither gets features of the other's dependencies.
bench: dist ## Measure speed beside bare baselines, cold starts, batching, density (installs wrk)
	cargo build --profile dist -p tessera-bare
	@$(SETUP) onnxruntime iris minilm smollm2 python bench
	@benches/ladder.sh
	@benches/embeddings.sh
	@benches/language.sh
	@benches/cold.sh
	@benches/batching.sh
	@benches/density.sh
	cargo bench --profile dist -p tessera --features llama --bench sandbox --bench accounting

release: guests ## Build the server for production: twice, the second time with a profile of itself under load (an hour)
	@$(SETUP) llama profdata onnxruntime iris minilm bench
	@benches/release.sh

setup: ## Install what run and test need: uv, ONNX Runtime, models, Python clients, a registry
	@$(SETUP) rust llama onnxruntime iris minilm filetype imagenet ocr vad smollm2 python registry
	@sdk/python/setup.sh

guests: ## Build the WebAssembly components into CARGO_TARGET_DIR/guests
	@$(SETUP) rust
	@sdk/build-guests.sh "$(TESSERA_GUESTS)"

build: guests ## Build the server, with its stock components inside
	@$(SETUP) llama
	cargo build --release -p tessera --features llama

dist: guests ## Build the server with all optimisations
	@$(SETUP) llama
	cargo build --profile dist -p tessera --features llama

lint: guests ## Check formatting; clippy with warnings denied
	cargo fmt --all --check
	@$(SETUP) llama
	cargo clippy --release --workspace --features tessera/llama --all-targets -- -D warnings

clippy: lint

fmt: ## Format the code
	cargo fmt --all

iris: ## Train the iris model again (its output is committed)
	@$(SETUP) python
	$(TESSERA_PYTHON) guest-examples/iris/train.py

clean: ## Remove build outputs; installed tools, models and TESSERA_HOME stay
	cargo clean
