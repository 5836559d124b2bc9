"""What `python experiments/sweep.py` does: plans, drives the workers or the jobs of a multirun, prints the table."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import asdict

import hydra
from omegaconf import DictConfig, OmegaConf

from .. import checkout
from ..table.provenance import INTERPRETER
from ..table.run import run_path
from ..workload.arguments import asks_help, help_text
from ..workload.config import CONF, PlanError, SweepConfig
from . import cards, overrides
from .plan import Plan, make_plan

STRICT_FAILURES = ("incorrect", "error", "timeout")
"""Statuses that strict=true exits with 1 for."""


def run_sweep(config: SweepConfig) -> None:
    """Plans, says what it will do and where it writes, drives the workers, prints the closing table."""
    from ..implementation import registry
    from ..table.run import Run
    from . import summary
    from .drive import drive

    known = registry.implementations()
    plan = make_plan(config, list(known))
    for _, fault in registry.broken():
        if config.strict:
            raise PlanError(f"strict=true: {fault}")
        print(f"note: left out, as it is broken: {fault}")
    if config.dry_run:
        print(summary.plan_text(plan))
        return
    environment = _environment(plan.measurement.needs_gpu(plan.modes))
    _refuse_what_cannot_run(plan, environment)
    command = os.environ.get(cards.COMMAND, "")
    checkout.interruptible()
    try:
        kind = plan.measurement
        run = Run.open(config.results, plan.study, kind, environment, new=config.new_run, command=command)
    except OSError as error:
        raise PlanError(f"results={config.results}: cannot use {error.filename}: {error.strerror}") from None
    try:
        print(summary.plan_text(plan))
        print(f"run {run.record['run_id']} on {environment['device']}, rows go to {run.path}", flush=True)
        run.save(families={name: known[name].family for name in plan.implementations})
        run.claim(plan.cases, plan.implementations)
        drive(plan, run, asdict(config.timing), config.timeout_s, force=config.force, retry=config.retry)
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; finished rows are in {run.path}, the same command goes on from there") from None
    print(summary.closing_table(run.path, plan))
    frame = summary.sweep_rows(run.path, plan)
    failed = int(frame["status"].isin(STRICT_FAILURES).sum())
    if config.strict and failed:
        raise PlanError(f"strict=true: {failed} of {len(frame)} rows in {run.path} are incorrect, error or timeout")


def _environment(with_gpu: bool) -> dict:
    """Device and software, asked of a process of its own, so that this one holds no GPU memory."""
    settings = checkout.program_environment(**({} if with_gpu else {"CUDA_VISIBLE_DEVICES": ""}))
    done = subprocess.run(
        checkout.program("experiments.table.provenance"),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=settings,
    )
    if done.returncode:
        raise PlanError("cannot tell this machine's GPU and software: " + done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def _refuse_what_cannot_run(plan: Plan, environment: dict) -> None:
    needed, has = plan.gpu_bytes(), environment["memory_bytes"]
    if environment["device"] == INTERPRETER:
        refusal = plan.measurement.refusal(plan.cases, plan.modes)
        if refusal:
            raise PlanError(refusal)
    elif needed > has:
        print(f"note: the largest case takes about {needed / 1e9:.0f} GB, the GPU has {has / 1e9:.0f}: expect oom rows")


def _tell(jobs: list[overrides.Job]) -> None:
    """Says what each of several sweeps does, and how long all of them take."""
    from . import summary

    for job in jobs:
        print(summary.plan_text(job.plan))
    if len(jobs) > 1:
        print(summary.whole_text([job.plan for job in jobs]))


def _run_jobs(jobs: list[overrides.Job], arguments: list[str]) -> None:
    """Has a submitit launcher run the jobs, after what cannot run is refused; says what they do and how they ended."""
    from . import summary

    local = "hydra/launcher=submitit_local" in arguments  # under Slurm they run on other machines than this one
    dry_run = all(job.config.dry_run for job in jobs)
    ask = functools.cache(_environment)
    machines = [ask(job.plan.measurement.needs_gpu(job.plan.modes)) if local and not dry_run else None for job in jobs]
    for job, machine in zip(jobs, machines):
        if machine:
            _refuse_what_cannot_run(job.plan, machine)
    _tell(jobs)
    if dry_run:
        return
    paths = [
        run_path(job.config.results, job.plan.study, machine)
        if machine
        else job.config.results / "<device>" / f"{job.plan.study}.csv"
        for job, machine in zip(jobs, machines)
    ]
    rows = ", ".join(dict.fromkeys(map(str, paths)))
    print(f"{len(jobs)} jobs: rows go to {rows}; what the jobs print to {jobs[0].logs}/<job>/", flush=True)
    cards.hand_down(spread=True)
    checkout.interruptible()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # has Hydra pass on what ends a job, rather than print a traceback and exit
    try:
        _hydra_main()
    except Exception as error:
        lost = f"{type(error).__name__}: {' '.join(str(error).split())[-400:]}"
        line = checkout.one_line(error) or f"{lost}; the same command again runs what is left, and only that"
        raise SystemExit(f"error: a job has failed: {line}") from None
    for job, machine, path in zip(jobs, machines, paths):
        if machine:
            print(summary.closing_table(path, job.plan))
    print(f"{len(jobs)} jobs have ended, none has failed: rows are in {rows}")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _hydra_main(config: DictConfig) -> None:
    card = cards.lease()
    try:
        typed: SweepConfig = OmegaConf.to_object(config)  # type: ignore[assignment]
        if typed.list:
            from . import summary

            print(summary.implementations_text())
        else:
            run_sweep(typed)
    except Exception as error:
        line = checkout.one_line(error)
        if line is None or cards.in_job():
            raise  # of a job, the process that started it says so
        raise SystemExit(f"error: {line}") from None
    finally:
        if card is not None:
            card.close()


def main(doc: str | None = None) -> None:
    """The command line of a sweep; doc: what its help begins with."""
    if sys.argv[1:2] == ["--list"]:
        sys.argv[1] = "list=true"
    if asks_help(sys.argv[1:]):
        print(help_text(SweepConfig, doc))
        return
    try:
        line = overrides.read(sys.argv[1:])
        sys.argv[1:] = line.arguments  # where Hydra looks
        submitted = any(text.startswith("hydra/launcher=submitit") for text in line.arguments)
        several = line.many and not line.only_shown
        jobs = [overrides.planned_job(texts) for texts in line.combinations] if several else []
        if jobs and submitted:
            _run_jobs(jobs, line.arguments)
        elif jobs and all(job.config.dry_run for job in jobs):
            _tell(jobs)
        else:
            cards.hand_down(spread=False)
            _hydra_main()
    except PlanError as error:
        raise SystemExit(f"error: {error}") from None
