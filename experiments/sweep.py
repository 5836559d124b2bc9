"""The entry: sweeps model shape, batch size, expert count and skew over every implementation, rows into CSVs.

    python experiments/sweep.py model=mixtral skew=1.2
    python experiments/sweep.py study=throughput dry_run=true
    python experiments/sweep.py -m model=mixtral,qwen2_paper skew=0,0.6,1.2
    python experiments/sweep.py -m study=throughput model=mixtral,qwen2_paper hydra/launcher=submitit_local
    python experiments/sweep.py list=true

conf/config.yaml says what every key means. Rows go to results/<device>/<study>.csv as soon as they are known; the same
command again goes on where it was cut.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

if not __package__:
    runpy.run_path(str(Path(__file__).resolve().parent / "checkout.py"))

import hydra
from omegaconf import DictConfig, OmegaConf

from tritonmoe_bench.experiments import cards, overrides
from tritonmoe_bench.experiments.plan import CONF, Plan, PlanError, SweepConfig, make_plan

ROOT = CONF.parent


def run_sweep(config: SweepConfig) -> None:
    """Plans, says what it will do and where it writes, drives the workers, prints the closing table."""
    from tritonmoe_bench.experiments import registry, summary
    from tritonmoe_bench.experiments.drive import drive
    from tritonmoe_bench.experiments.run import Run

    known = registry.implementations()
    plan = make_plan(config, list(known))
    if config.dry_run:
        print(summary.plan_text(plan))
        return
    environment = _environment(plan)
    _refuse_what_cannot_run(plan, environment)
    command = os.environ.get(cards.COMMAND, "")
    run = Run.open(ROOT / config.results, plan.study, plan.kind, environment, new=config.new_run, command=command)
    print(summary.plan_text(plan))
    print(f"run {run.record['run_id']} on {environment['device']}, rows go to {run.path}", flush=True)
    run.save(families={name: known[name].family for name in plan.implementations})
    run.claim(plan.cases, plan.implementations)
    try:
        drive(plan, run, asdict(config.timing), config.timeout_s, force=config.force)
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; finished rows are in {run.path}, the same command goes on from there") from None
    print(summary.closing_table(run.path, plan))


def _environment(plan: Plan) -> dict:
    """Device and software, asked of a process of its own, so that this one holds no GPU memory."""
    counted_only = plan.kind == "traffic" and "counters" not in plan.modes
    settings = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if counted_only else {})
    command = [sys.executable, str(Path(__file__).with_name("provenance.py"))]
    done = subprocess.run(command, capture_output=True, text=True, env=settings)
    if done.returncode:
        raise PlanError("cannot tell this machine's GPU and software: " + done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def _refuse_what_cannot_run(plan: Plan, environment: dict) -> None:
    needed, has = plan.gpu_bytes(), environment["memory_bytes"]
    from tritonmoe_bench.experiments.measure import INTERPRETER_FLOPS

    if environment["device_uuid"] == "":
        if plan.kind != "traffic" and max(case.flops for case in plan.cases) > INTERPRETER_FLOPS:
            raise PlanError(
                "no NVIDIA GPU here: without one only model=tiny or study=smoke can run (Triton's interpreter, "
                "nothing is timed), and dry_run=true works for any sweep"
            )
    elif needed > has:
        print(f"note: the largest case takes about {needed / 1e9:.0f} GB, the GPU has {has / 1e9:.0f}: expect oom rows")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _hydra_main(config: DictConfig) -> None:
    typed: SweepConfig = OmegaConf.to_object(config)  # type: ignore[assignment]
    if typed.list:
        from tritonmoe_bench.experiments import summary

        print(summary.implementations_text())
        return
    card = cards.lease()
    try:
        run_sweep(typed)
    except PlanError as error:
        if cards.in_job():
            raise  # the process that started the jobs says so
        raise SystemExit(f"error: {error}") from None
    finally:
        if card is not None:
            card.close()


def main() -> None:
    arguments = sys.argv[1:]
    if arguments and arguments[0] == "--list":
        sys.argv[1:] = ["list=true", *arguments[1:]]
    spread = any(text.startswith("hydra/launcher=submitit") for text in sys.argv[1:])
    try:
        overrides.check(sys.argv[1:])
        cards.hand_down(spread)
        _hydra_main()
    except SystemExit as end:
        if spread and end.code:
            print("a job has failed: the same command again runs what is left, and only that", file=sys.stderr)
        raise
    except PlanError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
