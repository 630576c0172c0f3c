# Tessera: `make run` builds everything and serves three real models; `make test` shows that it works.
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

SETUP := guest-examples/setup.sh

.PHONY: help run test schema conformance bench setup guests build dist lint clippy fmt iris clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# What is run and measured is the optimised build; the tests' own takes a quarter of the time to link.
run bench: export TESSERA_BIN := $(CARGO_TARGET_DIR)/dist/tessera

run: dist ## Build, serve on TESSERA_LISTEN (127.0.0.1:8080), deploy three models, stay up until Ctrl-C
	@$(SETUP) onnxruntime iris minilm filetype
	@exec guest-examples/run-demo.sh

# Three calls, because cargo unites the features of all packages that it builds at once: with the others beside it, every
# dependency of the server would be compiled a second time.
test: setup build ## Run all tests: native, over HTTP, through real Python clients
	cargo test --release -p tessera
	cargo test --release -p tessera-sdk -p tessera-componentize -p tessera-scoring -p tessera-embeddings \
		-p tessera-encoder -p tessera-classification -p filetype -p imagenet -p ocr -p rerank -p vad --features tessera-sdk/ndarray
	@tests/python/open-inference.sh
	@tests/wasmtime.sh
	cargo test --release -p tessera-tests
	@tests/conformance/run.sh 60
	cd sdk/python && $(TESSERA_PYTHON_SDK) -m mypy && OMP_NUM_THREADS=1 $(TESSERA_PYTHON_SDK) -m pytest -q

schema: build ## Ask a server all that its OpenAPI document allows, and more (schemathesis, about a minute)
	@$(SETUP) python
	@tests/schemathesis.sh

conformance: build ## Run the ONNX project's operator cases through a guest, on both backends (ten minutes)
	@$(SETUP) onnxruntime
	@tests/conformance/run.sh

# The baselines are built apart from the server, so that neither gets features of the other's dependencies.
bench: dist ## Measure speed beside bare baselines, cold starts, batching, density (installs wrk)
	cargo build --profile dist -p tessera-bare
	@$(SETUP) onnxruntime iris minilm bench
	@benches/ladder.sh
	@benches/embeddings.sh
	@benches/cold.sh
	@benches/batching.sh
	@benches/density.sh
	cargo bench --profile dist -p tessera --bench sandbox --bench accounting

setup: ## Install what run and test need: uv, ONNX Runtime, models, Python clients, a registry
	@$(SETUP) rust onnxruntime iris minilm filetype imagenet ocr vad python registry
	@sdk/python/setup.sh

guests: ## Build the WebAssembly components into CARGO_TARGET_DIR/guests
	@$(SETUP) rust
	@sdk/build-guests.sh "$(TESSERA_GUESTS)"

build: guests ## Build the server, with its stock components inside
	cargo build --release -p tessera

dist: guests ## Build the server with all optimisations
	cargo build --profile dist -p tessera

lint: guests ## Check formatting; clippy with warnings denied
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

clippy: lint

fmt: ## Format the code
	cargo fmt --all

iris: ## Train the iris model again (its output is committed)
	@$(SETUP) python
	$(TESSERA_PYTHON) guest-examples/iris/train.py

clean: ## Remove build outputs; installed tools, models and TESSERA_HOME stay
	cargo clean
