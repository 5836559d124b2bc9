"""The jobs of a multirun under one of Hydra's submitit launchers, each pinned to a card of its own.

submitit_local starts all jobs at once, and shows all of them the same card. So the parent hands down the cards that it
sees, and each job leases one of them: it holds that card's lock (experiments/table/locks.py) until it ends, and a job
that finds none free waits. Slurm shows a job its own cards; it leases one of those. As a file, prints the cards that
PyTorch sees, one UUID a line.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

from .. import checkout
from ..table.locks import take

CARDS, COMMAND = "TRITONMOE_CARDS", "TRITONMOE_COMMAND"
POLL_S = 0.2


def hand_down(spread: bool) -> None:
    """Puts into the environment what the jobs of this command line need: its name, where the code is, and its cards.

    spread: whether jobs become processes of their own, which is when the cards are asked for.
    """
    os.environ[COMMAND] = secrets.token_hex(8)
    if spread:
        os.environ[CARDS] = ",".join(visible_cards())
        os.environ |= checkout.program_environment()  # a job is started by submitit, not by a script of ours


def in_job() -> bool:
    """Whether this process is a job of a submitit launcher."""
    return "SUBMITIT_EXECUTOR" in os.environ


def lease(folder: Path | None = None) -> IO[str] | None:
    """In a job: takes a free card, waiting for one, and pins this process and its children to it.

    Returns what holds the lease until it is closed; None outside of a job, and where there is no card. folder: of the
    locks, by default one of this user's in the system's temporary folder.
    """
    if not in_job():
        return None
    local = os.environ["SUBMITIT_EXECUTOR"] == "local"
    cards = [card for card in os.environ.get(CARDS, "").split(",") if card] if local else visible_cards()
    if not cards:
        return None
    folder = folder or Path(tempfile.gettempdir()) / f"tritonmoe-bench-cards-{os.getuid()}"
    told = False
    while True:
        for card in cards:
            held = take(folder / f"{card}.lock", wait=False)
            if held is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = card
                print(f"pinned to {card}", flush=True)
                return held
        if not told:
            print(f"waiting for one of {len(cards)} cards", flush=True)
            told = True
        time.sleep(POLL_S)


def visible_cards() -> list[str]:
    """The cards that PyTorch sees, by UUID, or by index where the driver does not tell it; slices of a card (MIG) as
    CUDA_VISIBLE_DEVICES names them. Asked of a process of its own, so that this one starts no CUDA."""
    slices = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.startswith("MIG-")]
    if slices or not _has_driver():
        return slices
    done = subprocess.run(
        checkout.program("experiments.sweeping.cards"),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=checkout.program_environment(),
    )
    if done.returncode:
        raise RuntimeError(
            "cannot tell this machine's GPUs: " + (done.stderr.strip().splitlines() or ["no reason"])[-1]
        )
    return done.stdout.split()


def _has_driver() -> bool:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


def _print_cards() -> None:
    import torch

    for index in range(torch.cuda.device_count()):
        uuid = str(getattr(torch.cuda.get_device_properties(index), "uuid", "")).removeprefix("GPU-")
        print(f"GPU-{uuid}" if uuid else index)


if __name__ == "__main__":
    _print_cards()
