# Everything runs in .venv, which the first command makes. `make help` lists the commands.

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin/python
# As many processes as cores. What the tests of a file share is made once, as they stay together.
PYTEST := $(RUN) -m pytest -q -n auto --maxprocesses 8 --dist loadfile

.PHONY: help demo test test-full test-emulated lint format clean arm-wheels arm-python bench-cpu bench-quality bench-quality-peers bench-memory
.DEFAULT_GOAL := help

help:
	@echo "make demo       quantize, compile and run a small real model, and measure it"
	@echo "make test       linters, type checks and the fast tests"
	@echo "make test-full  the same with the slow tests"
	@echo "make test-emulated  every emulated test of GPUs' kernels, slow ones too"
	@echo "make bench-cpu      matmul kernels of this CPU beside ONNX Runtime's and PyTorch's, and its limits"
	@echo "make bench-quality TEXT=FILE        every recipe and every step left out, on a text of yours"
	@echo "make bench-quality-peers TEXT=FILE  ours beside AutoRound, llm-compressor and HQQ"
	@echo "make bench-memory                   memory of three blocks as wide as Llama-2-70B's"
	@echo "make arm-wheels         TVM for 64-bit ARM Linux in build/arm-wheels, for the runner and its tests"
	@echo "make arm-python         Python with it for qemu, in build/arm-python, for the test of packs"
	@echo "make format     let ruff rewrite what it can"
	@echo "make clean      remove what was built, the environment included"

# pip is quiet: it would warn of package indexes that do not carry every package.
$(STAMP): pyproject.toml
	@echo "Setting up $(VENV): downloads TVM and PyTorch the first time ..."
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install -qq --disable-pip-version-check -e '.[all]'
	@touch $@

demo: $(STAMP)
	@$(RUN) benchmarks/demo.py

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-logo
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy benchmarks

test: lint
	$(PYTEST) -m "not slow"

test-full: lint
	$(PYTEST)

test-emulated: $(STAMP)
	$(PYTEST) tests/emulate

# The peers are installed beside the rest: they are no dependency of anything else.
bench-cpu: $(STAMP)
	@$(RUN) -m pip install -qq --disable-pip-version-check 'onnx>=1.23,<2' 'onnxruntime>=1.32,<2'
	$(RUN) benchmarks/kernels_cpu.py --m 1,8,128 --peers --json build/kernels-small.json --plot build/kernels-small.svg
	$(RUN) benchmarks/kernels_cpu.py --shapes 2048x2048,4096x4096,4096x11008,11008x4096 --group-size 128 --m 1,128 \
		--peers --json build/kernels-large.json --plot build/kernels-large.svg

# TEXT is a UTF-8 text to score on, CALIBRATION one to calibrate on: see docs/quality.md.
TEXT ?= $(error give a text to score on: make $@ TEXT=FILE)
CALIBRATION ?= default
ABLATIONS := rtn,paper,awq without clip,awq without value scales,awq,learned rounding alone,awq+ without scales,$\
	awq+ without clip,awq+ on full-precision inputs,$\
	awq+ with the search's steps,awq+ without final norm,awq+

bench-quality: $(STAMP)
	$(RUN) -m benchmarks.quality --text $(TEXT) --calibration $(CALIBRATION) --recipes "$(ABLATIONS)"

bench-quality-peers: $(STAMP)
	$(RUN) -m benchmarks.quality_peers --text $(TEXT) --calibration $(CALIBRATION)

bench-memory: $(STAMP)
	$(RUN) -m benchmarks.memory_quantize

# The same two versions as for this machine. Nothing of them runs here but in an emulator.
arm-wheels: $(STAMP)
	@$(RUN) -m pip install -qq --disable-pip-version-check --no-deps --upgrade --target build/arm-wheels \
		--platform manylinux_2_28_aarch64 --only-binary=:all: \
		$$(sed -n 's/^ *"\(apache-tvm[^"]*\)",/\1/p' pyproject.toml)

arm-python: arm-wheels
	@bash tests/support/arm_python.sh build/arm-python build/arm-wheels

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
