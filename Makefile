# The two commands of the README are `make serve` and `make test`; each sets up all that it needs.
PYTHON ?= python3
BIN := .venv/bin
# Bars for what is fetched, without a line for each of the dependencies that is already there.
PIP = $(BIN)/python -m pip install --disable-pip-version-check --progress-bar on
# The demo base is fetched once into the user's cache, see `manylora pull --help`.
BASE := SmolLM2-135M-Instruct
# Processes that run the tests. The tests of one file share what they start, so that they run in one of them.
WORKERS ?= 2

.PHONY: help serve docs test long fast fmt durations coverage check install base lint types unit sanitize aarch64 clients clients-test bench-docs pages screenshots clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

serve: .venv/installed ## Set up everything and serve the demo adapters on http://127.0.0.1:8080
	@$(BIN)/manylora serve

install: .venv/installed ## Make .venv with the `manylora` command in it

# The type checker has one thread and takes the time that the tests leave: they wait for a fifth of it.
test: lint ## Run every check and every test
	@nice -n 19 $(BIN)/mypy & types=$$!; $(MAKE) --no-print-directory unit; failed=$$?; wait $$types && exit $$failed

check: lint types ## Linters and type checker only
	@find src -name '*.py' -o -name '*.cpp' | xargs wc -l | sort -n | tail -n 6

base: .venv/installed ## Fetch the default base model into the user's cache
	@$(BIN)/manylora pull $(BASE)

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/tested
	$(BIN)/mypy

unit: .venv/tested .venvs/openai/installed .venvs/lorax/installed base
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

long: .venv/ray .venvs/openai/installed .venvs/lorax/installed .venvs/axe-core/installed base ## Run the long runs of the laws, which CI does after `make test`
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --long

fast: .venv/tested ## Lint, types, and the tests without base, clients, services or long runs: under a minute
	@$(BIN)/ruff check -q . && $(BIN)/ruff format -q --check .
	@$(BIN)/mypy & types=$$!; $(BIN)/python -m pytest -q -n $(WORKERS) --fast --no-header -r fE && wait $$types

fmt: .venv/tested ## Format the code, and sort and remove imports
	@$(BIN)/ruff check -q --fix .
	@$(BIN)/ruff format -q .

durations: .venv/tested ## Write tests/slow_tests.txt, the tests that `make fast` leaves out for their time
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder --junitxml .pytest_cache/durations.xml
	$(BIN)/python -m tests.support.durations .pytest_cache/durations.xml

coverage: .venv/tested ## Run the fast tests and print the lines of src that they miss, file by file
	$(BIN)/python -m pytest -q -n $(WORKERS) --fast --cov=manylora --cov-report=term:skip-covered

sanitize: .venv/tested ## Run the kernels' tests under the address and undefined-behaviour sanitizers
	tests/kernels/sanitize.sh

aarch64: .venv/tested ## Run the kernels' tests with kernels compiled for aarch64, in an emulator
	tests/kernels/aarch64/run.sh armv8.2-a+i8mm
	tests/kernels/aarch64/run.sh armv8.2-a+dotprod -k 'test_int8 or test_int4 or test_experts'
	tests/kernels/aarch64/run.sh armv8-a -k 'test_int8 or test_int4 or test_experts'

clients: .venvs/openai/installed .venvs/lorax/installed ## Make the environments of two public clients

clients-test: .venv/tested base ## Run every public client in an environment of its own, and print a table
	@$(BIN)/python -m tests.clients.matrix $(CLIENTS)

# A half-made environment is removed, so that the next try starts anew.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "manylora needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version); try: make PYTHON=python3.12" >&2; exit 1; }
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "python -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 1; }

# torch comes first and by itself: its version bound selects the build that this machine's package index offers.
.venv/installed: .venv/bin/python pyproject.toml
	@echo "installing manylora into .venv (torch is the large part: 200 MB to 3 GB, depending on the build)"
	@begun=$$(date +%s); \
	 $(PIP) 'torch>=2.11,<2.14' -c constraints.txt && echo "  torch: $$(($$(date +%s) - begun)) s" && begun=$$(date +%s) && \
	 $(PIP) -e . -c constraints.txt && echo "  manylora and what else it needs: $$(($$(date +%s) - begun)) s"
	@touch $@

.venv/tested: .venv/installed
	@echo "installing what the tests need into .venv"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test,train]' -c constraints.txt
	@touch $@

.venv/ray: .venv/tested
	@echo "installing Ray Serve into .venv (500 MB)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[ray]' -c constraints.txt
	@touch $@

# The public clients live in environments of their own: their pins clash with ours and with each other's.
PINS = tests/clients/pins.txt
.venvs/%/installed:
	@$(PYTHON) -m venv .venvs/$*
	@.venvs/$*/bin/python -m pip install -q --disable-pip-version-check $$(sed -n 's/^$* //p' $(PINS))
	@touch $@

# npm asks a registry that a machine may not reach: it gives up after one try of ten seconds.
.venvs/openai-npm/installed:
	@mkdir -p .venvs/openai-npm
	@cd .venvs/openai-npm && npm install --no-audit --no-fund --no-update-notifier --fetch-retries 0 \
	    --fetch-timeout 10000 --prefix . $$(sed -n 's/^openai-npm //p' $(CURDIR)/$(PINS))
	@touch $@

# The checks of the console's pages for all readers, for the tests alone.
.venvs/axe-core/installed:
	@mkdir -p .venvs/axe-core
	@cd .venvs/axe-core && npm install --no-audit --no-fund --no-update-notifier --fetch-retries 0 \
	    --fetch-timeout 10000 --prefix . axe-core@4.14.1
	@touch $@

screenshots: .venv/tested ## Write docs/console/*.png from the console in Debian's chromium
	$(BIN)/python -m tests.console.browser.screenshots

bench-docs: .venv/installed ## Write docs/benchmarks.md, docs/scale.md and their pictures from benchmarks/results
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[bench]' -c constraints.txt
	$(BIN)/python -m benchmarks.page.plots
	$(BIN)/python -m benchmarks.page.fleet

docs: .venv/installed ## Build the site of docs/ into site/; a broken link or anchor is an error
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[docs]' -c constraints.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

pages: .venv/tested ## Write the pages that are made from code: settings, metrics, routes, tables of rooms and bases
	@$(BIN)/python -m manylora.config.page > docs/settings.md
	@$(BIN)/python -m manylora.server.observability.page > docs/metrics.md
	@$(BIN)/python -m tests.support.rooms
	@$(BIN)/python -m tests.models.parity.page
	@$(BIN)/python -m tests.cli.printed_outputs
	@$(BIN)/python -m tests.support.http_page
	@$(BIN)/python -m tests.ray_serve.deploy_files
	@$(BIN)/python -m tests.deploy.dashboard

clean: ## Remove everything that was built here
	rm -rf .venv .venvs .pytest_cache .mypy_cache .ruff_cache .hypothesis
