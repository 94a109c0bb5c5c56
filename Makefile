# Every target makes the virtual environment by itself; `make demo` and `make test` are all that a newcomer needs.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The system's own interpreter first: distributions build it with profile-guided optimisation, and it serves a tenth more
# requests than one that a version manager compiled without.
PYTHON ?= $(shell for p in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
SECONDS_OF_FUZZ ?= 60
WORKERS ?= 2

.PHONY: demo test bench check fuzz lock clean

demo: $(STAMP)
	@$(BIN)/l7proxy demo

test: $(STAMP)
	@$(BIN)/python -m tests.support.servers
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

bench: $(STAMP)
	@$(BIN)/python -m tests.support.servers
	@$(BIN)/python -m bench

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS_OF_FUZZ)

# What the container image is made of: run it after a change of the dependencies.
lock: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-tools
	$(BIN)/pip-compile --quiet --generate-hashes --strip-extras --no-emit-index-url --no-emit-find-links --no-header \
		--extra grpc --extra spiffe --output-file requirements.lock pyproject.toml
	echo "setuptools>=77" | $(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --no-emit-index-url \
		--no-emit-find-links --no-header --output-file requirements-build.lock -

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "l7proxy needs CPython 3.11 or newer, with venv (on Debian: apt-get install python3-venv);" \
		"name one with make PYTHON=/path/to/python"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)
