# make run    a gateway on SQLite, ready for a first message
# make test   everything that is checked on every change
# make help   the rest
.PHONY: run test check soak bench lock format help
.DEFAULT_GOAL := help

BIN := .venv/bin
WORKERS ?= 3
SOAK_SECONDS ?= 3600
PYTEST := $(BIN)/pytest -q -p no:cacheprovider --tb native

help:
	@echo "make run     install into .venv and start a gateway on SQLite"
	@echo "make test    static checks and every test (the databases, brokers and caches it needs are installed if missing, as root on Debian)"
	@echo "make check   static checks only: ruff, mypy, import-linter"
	@echo "make soak    the ledgers under faults for SOAK_SECONDS=$(SOAK_SECONDS), on more versions of the databases"
	@echo "make bench   messages and jobs per second on this machine"
	@echo "make format  format the code"
	@echo "make lock    resolve requirements.lock anew"

run:
	@.ci/setup
	@echo
	@echo "Send a message:    curl -i -d 'hello' http://127.0.0.1:8080/messages/hello"
	@echo "See what it did:   curl http://127.0.0.1:8090/api/jobs"
	@echo "                   $(BIN)/gateway jobs list"
	@echo "Stop with Ctrl-C."
	@echo
	@exec $(BIN)/gateway run

test: check
	@.ci/setup services
	@$(PYTEST) -n $(WORKERS) --dist worksteal --durations 15 tests

check:
	@.ci/setup
	@$(BIN)/ruff check -q
	@$(BIN)/ruff format -q --check
	@$(BIN)/mypy
	@$(BIN)/mypy tests/example/gateway_example tests/typing
	@report=$$($(BIN)/lint-imports --no-cache) || { echo "$$report"; exit 1; }

soak:
	@.ci/setup services
	@CI=1 SOAK_SECONDS=$(SOAK_SECONDS) $(PYTEST) --timeout 0 -m "slow or database" tests

bench:
	@.ci/setup services
	@$(BIN)/python -m tests.benchmarks

format:
	@.ci/setup
	@$(BIN)/ruff check -q --fix
	@$(BIN)/ruff format -q

lock:
	@.ci/setup
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --all-extras --group dev --generate-hashes \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file requirements.lock pyproject.toml
