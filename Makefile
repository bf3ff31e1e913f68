# make demo        install, pre-train a small ViT on the bundled photographs, evaluate, draw, export (about 10 minutes on 2 cores)
# make demo-seeds  the same for three seeds: mean and spread of the table
# make accelerator numeric tests, the step's speed and a training on this machine's GPU or TPU, in one table
# make test        install the test requirements and run the suite
# make test-slow   the long tests
# make reliability SIGKILLs, signals, damaged files, full disks, a soak; SCALE=0.05 makes it a twentieth (hours on two cores)
# make test-cloud  runs in a bucket, which an emulator serves on this machine
# make test-slurm  the template of launch/ on a real Slurm on this machine (root, and Debian's slurm-wlm and munge)
# make lint        ruff (format and rules) and mypy
# make lock        write requirements.lock: the packages of requirements.txt and all that they need, with the hashes of their files
# make format      let ruff rewrite the code
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo
SCALE ?= 1
# Two workers, whole files each: a third less time on 2 cores (93 s against 146 s when measured with 285 tests).
WORKERS ?= 2
# The stamps carry the interpreter's version: another PYTHON makes another environment.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
RUN_STAMP := $(VENV)/.installed-run-$(VERSION)
TEST_STAMP := $(VENV)/.installed-test-$(VERSION)
CLOUD_STAMP := $(VENV)/.installed-cloud-$(VERSION)
# Python compiles what it imports, which is a small part of the packages: half of pip's time is compiling all of them.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: demo demo-seeds accelerator test test-slow test-cloud test-slurm reliability lint lock format clean
.DELETE_ON_ERROR:

define make_venv
	@test -n "$(VERSION)" || { echo "$(PYTHON) does not run; set PYTHON=..., Python 3.11 or newer"; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(VERSION)")' \
	  || $(PYTHON) -m venv --clear $(VENV) \
	  || { echo "$(PYTHON) could not make a virtual environment (on Debian: apt-get install python3-venv)"; exit 1; }
endef

$(RUN_STAMP): requirements.lock
	$(make_venv)
	$(PIP) --require-hashes -r requirements.lock
	@touch $@

$(TEST_STAMP): requirements.lock requirements-test.txt
	$(make_venv)
	$(PIP) --require-hashes -r requirements.lock
	$(PIP) -r requirements-test.txt
	@touch $(RUN_STAMP) $@

$(CLOUD_STAMP): requirements.txt requirements-test.txt requirements-cloud.txt requirements-cloud-test.txt
	$(make_venv)
	$(PIP) -r requirements-cloud-test.txt
	@touch $(RUN_STAMP) $(TEST_STAMP) $@

demo: $(RUN_STAMP)
	$(BIN)/python train.py --config=configs/quickstart.py --workdir=$(DEMO)
	$(BIN)/python eval.py --config=configs/eval/figures.py --checkpoint=$(DEMO) --workdir=$(DEMO)
	$(BIN)/python -m sere_jax export --checkpoint=$(DEMO) --format=timm --network=teacher --output=$(DEMO)/backbone.safetensors
	$(BIN)/python eval.py --config=configs/eval/knn.py:bundled --checkpoint=$(DEMO) --workdir=$(DEMO) --config.baselines=True
	@printf '\n%-12s%s\n' checkpoint $(DEMO)/checkpoints figures $(DEMO)/figures export $(DEMO)/backbone.safetensors

demo-seeds: $(RUN_STAMP)
	$(BIN)/python -m benchmarks.demo_seeds

# With the machine's own Python where it has a JAX for its accelerator: make accelerator BIN=$$(dirname $$(which python))
accelerator:
	$(BIN)/python -m benchmarks.accelerator $(ARGUMENTS)

test: $(TEST_STAMP)
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n $(WORKERS) --dist=loadfile

reliability: $(TEST_STAMP)
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.reliability --scale=$(SCALE)

test-slow: $(TEST_STAMP)
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m slow

test-cloud: $(CLOUD_STAMP)
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest tests/cloud -m "slow or not slow"

test-slurm: $(TEST_STAMP)
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest tests/slurm -m slow

lint: $(TEST_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# uv resolves for all systems and for Python 3.11 and newer at once, which pip cannot.
lock:
	$(PYTHON) -m venv --clear .cache/lock
	.cache/lock/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	.cache/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --custom-compile-command "make lock" --output-file requirements.lock requirements.txt

format: $(TEST_STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
