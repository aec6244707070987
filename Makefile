# `make demo` and `make test` are the two commands to start with; the README shows the pip and python commands they run.
# `make test-current` runs the tests that depend on transformers with a current release, in a separate environment, and
# `make test-packaging` installs the package beside several releases, in environments that it makes and removes.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3,$(shell command -v $(name) 2>/dev/null)))
BIN := .venv/bin
CURRENT := .venv-current/bin
# The newest release of transformers that was tested, in an environment of its own.
CURRENT_TRANSFORMERS ?= transformers==5.24.0
# The versions that all environments here have in common.
PIP_INSTALL := -m pip install --quiet --constraint $(or $(CONSTRAINTS),constraints.txt)
# The tests whose results depend on the version of transformers.
CURRENT_TESTS := $(addprefix tests/,activations anatomy control engine prompts surgery sweep \
  $(addsuffix .py,attribution/test_attention attribution/test_seq2seq facts/test_filter \
  integration/test_tokenizers models/test_extras models/test_opening models/test_gguf models/test_safety probing/test_composition probing/test_head_flow \
  probing/test_heads probing/test_knowledge_prober probing/test_layer_edits probing/test_logit_lens \
  selfie/test_generated selfie/test_selfie selfie/test_sources selfie/test_templates \
  selfie/test_wrong_states tracing/test_approximate tracing/test_screening tracing/test_knowledge_tracing \
  tracing/test_noise tracing/test_trace test_current_install test_finite))

# Slow tests of what a release does not change: they run on the default one, and by `make test-all` on both.
CURRENT_FURTHER := $(addprefix tests/,other_device anatomy/test_interrupts.py selfie/test_batches.py)

# What CI runs of the tests with real workers.
CLUSTER_CI := trace or selfie or costs_nothing_but_time[2] or death_of_a_machine or killed_driver or other_weights or ctrl_c

# Two processes, because one process uses only one core. The tests of a file run in one process (loadfile), because they
# share models. Files keep their order (no-loadscope-reorder), because the slow ones come first.
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all test-current test-packaging test-cluster notebooks docs lint mutants bench gpu browser clean

demo: .venv/installed
	$(BIN)/python install_patch.py
	$(BIN)/python scripts/get_interpretations_from_examples.py --examples examples/examples.json

test: lint browser
	$(BIN)/python $(PYTEST)

test-current: .venv-current/installed
	$(CURRENT)/python $(PYTEST) $(addprefix --ignore=,$(CURRENT_FURTHER)) $(CURRENT_TESTS)

test-packaging: .venv/installed-for-tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m packaging tests/installation

# The notebook of scripts/, from an empty folder, and its outputs; then the tutorials, whose outputs are stored in them.
notebooks: .venv/installed-for-tests
	$(BIN)/python -m pytest -m notebook tests/integration
	$(BIN)/python docs/run_tutorials.py

# The documentation, in runs/docs; a warning is an error. It needs no network.
docs: .venv/installed-for-tests
	$(BIN)/sphinx-build --fail-on-warning --keep-going -q -b html docs runs/docs

# Both suites, with the combinations of families, tokenizers, data types and methods that the targets above leave out.
test-all: lint browser .venv-current/installed
	$(BIN)/python $(PYTEST) --all-combinations
	$(CURRENT)/python $(PYTEST) --all-combinations $(CURRENT_TESTS) $(CURRENT_FURTHER)

# Tests with real workers, a cluster of two machines on loopback. SOME=ci leaves out what CI does not run.
test-cluster: .venv/installed-for-cluster
	$(BIN)/python -m pytest -m cluster $(if $(filter ci,$(SOME)),-k "$(CLUSTER_CI)") tests/workers

lint: .venv/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 interpret

# Changes of the code that no test notices: COUNT of them are drawn with SEED. About half a minute per change.
mutants: .venv/installed-for-tests
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants/mutants.py --count $(or $(COUNT),20) --seed $(or $(SEED),0)

# The browser tests of the HTML pages need Chromium. If it is missing and cannot be installed, they are skipped with a
# message.
browser:
	@command -v chromedriver >/dev/null || { echo "installing Chromium for the browser tests of the HTML pages"; \
	  timeout 300 sh -c 'apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver' \
	  >/dev/null 2>&1; } || echo "Chromium could not be installed: the browser tests of the HTML pages will be skipped"

bench: .venv/installed
	$(BIN)/python -m benchmarks.bench_surgery
	$(BIN)/python -m benchmarks.bench_selfie
	$(BIN)/python -m benchmarks.bench_tracing
	$(BIN)/python -m benchmarks.bench_attribution
	$(BIN)/python -m benchmarks.bench_probing
	$(BIN)/python -m benchmarks.bench_growth
	$(BIN)/python -m benchmarks.bench_fact

# Everything that a GPU should show, in TO. Nothing is installed: PYTHON is one that has torch and transformers.
gpu:
	@$(PYTHON) -c "import torch, transformers" || { echo "make gpu needs a Python with torch and transformers: make gpu PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m benchmarks.gpu --to $(or $(TO),runs/gpu)

clean:
	rm -rf .venv .venv-current runs

# The installations are updated when the required packages change.
.venv/installed: setup.py pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is required but was not found; give its path: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the project and its packages into .venv (about a minute, 1.6 GB)"
	$(BIN)/python $(PIP_INSTALL) --editable '.[patch]'
	touch $@

.venv/installed-for-tests: .venv/installed
	$(BIN)/python $(PIP_INSTALL) --editable '.[patch,test,docs]'
	touch $@

.venv/installed-for-cluster: .venv/installed-for-tests
	$(BIN)/python $(PIP_INSTALL) --editable '.[patch,test,docs,cluster]'
	touch $@

.venv-current/installed: setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is required but was not found; give its path: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(CURRENT)/python || $(PYTHON) -m venv .venv-current
	@echo "installing a current transformers into .venv-current (about a minute, 1.6 GB)"
	$(CURRENT)/python $(PIP_INSTALL) '$(CURRENT_TRANSFORMERS)' --editable '.[accelerate,bitsandbytes,peft,sentencepiece,test]'
	touch $@
