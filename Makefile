# Two commands for a fresh clone: `make quickstart` and `make test`.
# `make test HF=1` also installs the reference libraries (extra `hf`) and runs the tests that need them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HF ?=
INSTALLED := $(BIN)/installed$(if $(HF),-hf)

.PHONY: quickstart test test-all test-gpu fake-gpu lint install parity soak wheel docs release-check

$(BIN)/installed: EXTRAS := cpu,test
$(BIN)/installed-hf: EXTRAS := cpu,test,hf
$(BIN)/installed-docs: EXTRAS := cpu,docs
$(BIN)/installed $(BIN)/installed-hf $(BIN)/installed-docs: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[$(EXTRAS)]'
	$(BIN)/python -m pip check
	touch $@

install: $(INSTALLED)

quickstart: install
	launch/quickstart.sh

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell paddle_llm tests docs custom_ops benchmarks configs examples launch *.md
	$(BIN)/python -m tests.helpers.forbidden_phrases

# A worker of the tests runs whole files, which share fixtures. A test may start more processes.
WORKERS ?= 2
test: lint
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile --durations 20 --durations-min 5

# Also the slow tests, and the thorough profile of tests/conformance: 10,000 texts for each tokenizer, 500 generated inputs.
# One worker, because some of the slow tests measure memory and time.
test-all: lint $(BIN)/installed-hf
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest

# The sdist and the wheel in dist/, and a short training with the wheel in a new environment of each Python version.
PYTHONS ?= python3.10 python3.11 python3.12
wheel: install
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	for python in $(PYTHONS); do .ci/smoke_wheel dist/*.whl $$python || exit 1; done

# The documentation as HTML, as Markdown and with llms.txt, in docs/_build/html. Every warning is an error.
docs: $(BIN)/installed-docs
	rm -rf docs/_build
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

# Before a release: versions, changelog and git, then the packages compared with the checkout, and the documentation.
# PYTHONS= omits the trainings with the wheel.
release-check: $(BIN)/installed $(BIN)/installed-docs
	$(BIN)/python .ci/release/check.py
	$(MAKE) wheel docs
	$(BIN)/python .ci/release/check.py --dist dist

# Every layout beside one process: the whole matrix, the table on stdout.
parity: install
	@$(BIN)/python benchmarks/parity.py $(PARITY)

# Trainings that are killed at random moments and started again, and what differs from trainings without kills.
# make soak MINUTES=30 SOAK='--launcher --seed 7'
MINUTES ?= 30
soak: install
	$(BIN)/python benchmarks/soak.py --minutes $(MINUTES) $(SOAK)

# The branches for GPUs of our own Python, on a CPU: patched predicates, and a report by branch.
fake-gpu: install
	$(BIN)/python -m tests.helpers.gpu.branches

# On a machine with GPUs, in an environment with the GPU build of Paddle: make test-gpu PYTHON=path/of/python. Never installs
# anything: the extra `cpu` would overwrite that build. The kernels' tests need torch, which may be in another environment.
GPU_RESULTS ?= gpu_results
KERNEL_PYTHON ?= $(PYTHON)
GPU_TESTS ?= tests/gpu
GPU_MARKS ?= gpu
test-gpu:
	rm -f $(GPU_RESULTS)/*.json
	-$(PYTHON) -m pytest $(GPU_TESTS) -m '$(GPU_MARKS)' -p tests.helpers.gpu.report --gpu-results $(GPU_RESULTS)/paddle_llm.json
	-PYTHON=$(KERNEL_PYTHON) custom_ops/tests/gpu/run.sh --results $(GPU_RESULTS) --no-table
	@$(PYTHON) -m tests.helpers.gpu.results $(GPU_RESULTS)
