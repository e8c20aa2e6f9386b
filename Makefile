# Two commands matter: `make quickstart` and `make test`. Both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export DAGSTER_HOME := $(CURDIR)/dagster_home

.PHONY: setup quickstart ui test test-all lint types lock clean

setup: $(STAMP)

$(STAMP): requirements.lock requirements-embedded.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: \
		-r requirements-embedded.lock || echo "No embedded model server for this platform:" \
		"set OPENAI_BASE_URL and OPENAI_API_KEY to any OpenAI-compatible server instead."
	touch $(STAMP)

quickstart: setup
	$(BIN)/synth run work_orders
	@echo
	@echo "The graph, checks and pictures:  make ui      (then open http://127.0.0.1:3000)"
	@echo "The released dataset:            $${SYNTH_HOME:-data}/releases/work_orders/"
	@echo "Where everything stands:         $(BIN)/synth status work_orders"

ui: setup
	$(BIN)/dagster dev -w workspace.yaml -h 127.0.0.1 -p $${PORT:-3000}

test: setup
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: setup
	$(BIN)/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# New pins: resolve pyproject.toml in a fresh environment and write versions only.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet setuptools wheel ".[dev]"
	.venv-lock/bin/python -m pip freeze --all --exclude pip --exclude synth_assets > requirements.lock
	.venv-lock/bin/python -m pip install --quiet ".[embedded]"
	.venv-lock/bin/python -m pip freeze | grep -i '^xllamacpp' > requirements-embedded.lock
	rm -rf .venv-lock

clean:
	rm -rf $(VENV) data
