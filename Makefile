# Two commands do everything on a fresh machine: `make reproduce` and `make test`.
#   make reproduce PY=python3 VENV=0    with the packages of that interpreter, no venv, no network
SHELL := /bin/bash
PY ?= python3
VENV ?= 1
JOBS ?= auto
ARGS ?=
comma := ,
space := $(comma:,=) $(comma:,=)
# Those that decide the claims, the paper's first, and draw its figures.
PAPER_STUDIES := throughput paper_code skew counters heights fusion decode stages experts
ALL_STUDIES := headline throughput quant paper_code native granular endtoend skew shards decode fusion heights stages energy experts recorded counters trace
GPU := $(shell nvidia-smi -L 2>/dev/null | head -n 1)
# In the interpreter every row has to be right; on a GPU a system that fails is a row like any other.
STRICT := $(if $(GPU),,strict=true)
# With a GPU, few of them: with nothing compiled yet, each takes some 20 s there.
SMOKE := $(if $(GPU),implementations=[paper_fused$(comma)fast] dtype=bf16)
# Without a GPU one fixed release keeps gigabytes of CUDA libraries away wherever that release has a CPU build.
TORCH := $(if $(GPU),torch>=2.11$(comma)<2.14,torch==2.13.0)
# list: words with commas between them.
list = $(subst $(space),$(comma),$(strip $(1)))
# What make is told beyond its own variables goes to the command, which names what it does not know. MAKEOVERRIDES has
# a backslash before a space that belongs to a value.
GIVEN = $(filter-out PY=% VENV=% JOBS=% ARGS=% TORCH=% GPU=% ALL_STUDIES=%,$(subst \$(space),<space>,$(MAKEOVERRIDES)))
KEYS = $(foreach word,$(GIVEN),'$(subst <space>,$(space),$(subst ','\'',$(word)))')

ifeq ($(VENV),1)
RUN := .venv/bin/python
READY := .venv/.ready
else
RUN := $(PY)
READY :=
endif

.DEFAULT_GOAL := help
.PHONY: help choose contribute cutlass flashinfer checkouts kernels peers setup test papertests smoke sweep tune portability figures report reproduce studies megablocks lint revisions clean

help:  ## list every target
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(READY)  ## make .venv with everything that the other targets need

# `make setup TORCH=...` takes effect in a .venv that is there already; later makes keep what it installed.
ifeq ($(origin TORCH),command line)
ifneq ($(shell cat .venv/.torch 2>/dev/null),$(TORCH))
.venv/.ready: another-torch
another-torch:
endif
endif
.venv/.ready: pyproject.toml
	@echo "setting up .venv (torch and triton are large: a few minutes the first time)"
	@test -x .venv/bin/python || $(PY) -m venv .venv
	@.venv/bin/python -m pip install -q --disable-pip-version-check --upgrade "pip>=23" "setuptools>=68" wheel
	@.venv/bin/python -m pip install -q --disable-pip-version-check "$(TORCH)"
	@.venv/bin/python -m pip install -q --disable-pip-version-check --no-build-isolation -e ".[dev]"
	@echo '$(TORCH)' > .venv/.torch
	@touch $@

test: $(READY)  ## every test; with no GPU in Triton's interpreter (20 minutes on two cores)
	$(RUN) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: $(READY)  ## ruff, mypy, and who may import whom (20 s)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy -p tritonmoe_bench
	PYTHONPATH=.src $(RUN) -c 'from importlinter.cli import lint_imports_command as run; run()' --no-cache

revisions: $(READY)  ## record that what was edited changes no number, after raising the revisions of what does; and write results/README.md
	PYTHONPATH=.src $(RUN) -m tritonmoe_bench.experiments.measure.revisions --record
	PYTHONPATH=.src $(RUN) -m tritonmoe_bench.experiments.measure.documentation

smoke: $(READY)  ## the tiny shape: outputs checked and, without a GPU, bytes counted (3 minutes); on a GPU of two systems (1 minute), IMPLEMENTATIONS=field for more
	$(RUN) experiments/sweep.py study=smoke force=true $(STRICT) $(or $(KEYS),$(SMOKE))
ifeq ($(GPU),)
	$(RUN) experiments/sweep.py study=traffic force=true $(STRICT)
endif

sweep: $(READY)  ## one study or sweep: make sweep STUDY=skew, or make sweep MODEL=mixtral SKEW=1.2
	$(RUN) experiments/sweep.py $(or $(strip $(KEYS) $(ARGS)),study=throughput)

studies: $(READY)  ## every study there is, on this machine's GPU (about 152 minutes on an H200, by the plan)
	$(RUN) experiments/sweep.py -m study=$(call list,$(ALL_STUDIES)) $(strip $(KEYS) $(ARGS))

tune: $(READY)  ## write the tuned table of fast for this machine's GPU: make tune MODEL=mixtral TOKENS=[1,8]
	$(RUN) experiments/tune.py $(KEYS) $(ARGS)

choose: $(READY)  ## the fastest system for a model and batch size, from the committed rows: make choose MODEL=mixtral TOKENS=32 [SKEW= DTYPE= GATING= QUANT= LAYER= TP= EP= DEVICE=]
	@$(RUN) experiments/choose.py $(KEYS) $(ARGS)

papertests: $(READY)  ## run the tests that the paper's authors publish, on their code and this GPU: results/paper-tests-<device>.json (1 minute)
	$(RUN) experiments/papertests.py $(KEYS) $(ARGS)

portability: $(READY)  ## compile every kernel for five GPUs, with none: results/portability.csv (31 minutes on two cores); the authors' with CODE=authors (5 minutes)
	$(RUN) experiments/portability.py $(KEYS) $(ARGS)

figures: $(READY)  ## draw every figure from the CSVs (35 s)
	$(RUN) plots/draw.py $(KEYS) $(ARGS)

report: $(READY)  ## results/REPORT.md and results/report.html from the CSVs (12 s)
	$(RUN) experiments/report.py $(KEYS) $(ARGS)

contribute: $(READY)  ## pack this machine's results into one file to send, without host names and paths: make contribute [DEVICE=]
	@$(RUN) experiments/contribute.py $(KEYS) $(ARGS)

reproduce: $(READY)  ## with a GPU the studies that decide the claims on the paper (says first how long), else smoke (4 minutes); then figures and report
ifeq ($(GPU),)
	@echo "No NVIDIA GPU here: the tiny shape in Triton's interpreter, then figures and report from the committed results,"
	@echo "some 4 minutes on two cores."
	@$(MAKE) --no-print-directory smoke
else
	@echo "Found $(GPU): first, within a minute, the tiny shape with $(SMOKE),"
	@echo "then the studies that decide the claims, figures and report. All resume where they were cut, and rows that are"
	@echo "there count as done (make sweep STUDY=... FORCE=true measures them again)."
	@$(RUN) experiments/sweep.py -m study=$(call list,$(PAPER_STUDIES)) dry_run=true
	@$(MAKE) --no-print-directory smoke
	@$(MAKE) --no-print-directory studies ALL_STUDIES="$(PAPER_STUDIES)"
ifneq ($(wildcard .peers/tritonmoe/tests)$(TRITONMOE_TRITONMOE_PATH),)
	-@$(MAKE) --no-print-directory papertests
endif
endif
	@$(MAKE) --no-print-directory figures
	@$(MAKE) --no-print-directory report
ifeq ($(GPU),)
	@PYTHONPATH=.src $(RUN) -m tritonmoe_bench.experiments.analysis.committed
endif
	@echo "Read results/REPORT.md, or open results/report.html."

peers: $(READY)  ## cut vLLM, SGLang, DeepSpeed, DeepGEMM down to their MoE kernels, unpack Humming and SonicMoE, into .peers
	$(RUN) baselines/builds/offline/prune_vllm.py
	$(RUN) baselines/builds/offline/prune_sglang.py
	$(RUN) baselines/builds/offline/prune_deepspeed.py
	$(RUN) baselines/builds/offline/prune_deep_gemm.py
	$(RUN) baselines/builds/offline/unpack.py

checkouts: $(READY)  ## clone ScatterMoE, TritonMoE (the paper's code), Tutel and FastMoE into .peers, and compile the last two (needs nvcc)
	$(RUN) baselines/builds/checkouts/build.py $(ARGS)

kernels: $(READY)  ## compile FlashInfer's mono_moe and MAGMA's vbatched GEMM, one kernel each, into .peers (needs nvcc)
	$(RUN) baselines/builds/checkouts/kernels.py $(ARGS)

flashinfer: $(READY)  ## compile FlashInfer's cutlass_fused_moe for Hopper, into .peers/flashinfer_cutlass (needs nvcc; 15 minutes on two cores)
	$(RUN) baselines/builds/checkouts/fused_moe.py $(ARGS)

cutlass: $(READY)  ## compile CUTLASS's grouped GEMM for Hopper, into .peers/cutlass (needs nvcc)
	$(RUN) baselines/builds/cutlass/build.py $(ARGS)

megablocks: $(READY)  ## build Megablocks, stanford-stk and grouped_gemm from their sources, into .megablocks
	$(RUN) baselines/builds/megablocks/build.py $(ARGS)

clean:  ## remove what make made here, but for results, figures, and the systems in .peers and .megablocks, which take long to build
	rm -rf .venv build *.egg-info .src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
