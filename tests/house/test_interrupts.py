"""Ctrl-C is one line, at any moment after the first line of a command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tritonmoe_bench import ROOT

SITE = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            os.environ["INTERRUPT_AT"] = ""
            class Owner:
                def __del__(self):  # where an exception would be printed and forgotten
                    os.kill(os.getpid(), signal.SIGINT)
            Owner()

sys.meta_path.insert(0, Interrupt())
"""


def _by_default() -> None:
    """For a child: a shell has what it starts with & ignore Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("script", "module"),
    [
        ("experiments/sweep.py", "hydra"),
        ("experiments/sweep.py", "antlr4"),
        ("experiments/sweep.py", "tritonmoe_bench.baselines.fast"),
        ("experiments/choose.py", "pandas._libs"),
        ("experiments/tune.py", "yaml"),
        ("experiments/report.py", "jinja2"),
        ("experiments/portability.py", "omegaconf"),
        ("plots/draw.py", "matplotlib"),
    ],
)
def test_an_interrupt_while_a_command_loads_is_one_line(script, module, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    settings = os.environ | {"PYTHONPATH": str(tmp_path), "INTERRUPT_AT": module}
    command = [sys.executable, str(ROOT / script), *(["model=tiny"] if "sweep" in script else [])]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", env=settings, cwd=tmp_path, preexec_fn=_by_default
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "\nstopped before anything was done\n"


def test_an_interrupt_of_a_working_command_is_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "plots" / "draw.py"), f"out={tmp_path}", "dpi=40"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", preexec_fn=_by_default
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.png")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "\nstopped\n"
    assert "Traceback" not in out
