"""Whole sweeps, each a process, of systems made up for it: one that misuses its worker's pipe, and one that is timed
again."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ADAPTER = '''
import os
import stat

from tritonmoe_bench.experiments.implementation.contract import OK, Implementation


def pipes():
    """Every pipe of this process that can be written to, but for what is printed."""
    for number in range(3, 256):
        try:
            if stat.S_ISFIFO(os.fstat(number).st_mode):
                yield number
        except OSError:
            continue


class Sound(Implementation):
    family, source, needs_gpu = "made-up", "tests", False
    name = "made_up_quiet"

    def version(self):
        return "1"

    def check(self, case):
        return OK

    def build(self, case, weights):
        from tritonmoe_bench.experiments.workload.reference import moe_forward

        if case.tokens == 2:
            self.misbehave()
        return lambda x: moe_forward(x, weights.router(), weights.expert, case.top_k, case.gate, None, x.dtype)

    def misbehave(self):
        pass


class Chatters(Sound):
    name = "made_up_chatter"

    def misbehave(self):
        for number in pipes():
            try:
                os.write(number, b"loaded 3 plug-ins\\n")
            except OSError:
                continue  # the end that is read from


class Closes(Sound):
    name = "made_up_closes"

    def misbehave(self):
        os.closerange(3, 256)
'''


@pytest.mark.slow
def test_a_system_that_misuses_the_pipe_of_its_worker_costs_its_own_rows(tmp_path):
    import pandas as pd

    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "fds.py").write_text(ADAPTER, encoding="utf-8")
    root = Path(__file__).resolve().parents[2]
    names = "made_up_chatter,made_up_closes,made_up_quiet"
    done = subprocess.run(
        [sys.executable, str(root / "experiments" / "sweep.py"), "model=tiny", "tokens=[1,2,3]", "modes=[eager]",
         f"implementations=[{names}]", f"results={tmp_path}"],
        env=os.environ | {"TRITONMOE_ADAPTERS": str(tmp_path / "adapters"), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [path] = tmp_path.glob("*/adhoc.csv")
    frame = pd.read_csv(path).set_index(["implementation", "tokens"]).sort_index()
    for name in names.split(","):
        expected = {1: "ok", 2: "ok" if name == "made_up_quiet" else "error", 3: "ok"}
        assert frame.loc[name, "status"].to_dict() == expected, frame.loc[name, "reason"].to_dict()
    assert "wrote into the pipe of its worker: 'loaded 3 plug-ins'" in frame.loc[("made_up_chatter", 2), "reason"]


@pytest.mark.slow
def test_another_timing_is_measured_and_shown(tmp_path):
    import pandas as pd

    root = Path(__file__).resolve().parents[2]
    adapters = root / "tests" / "fixtures" / "adapters"

    def sweep(*arguments):
        done = subprocess.run(
            [sys.executable, str(root / "experiments" / "sweep.py"), "model=tiny", "tokens=1", "modes=[eager]",
             "implementations=[made_up_sound]", f"results={tmp_path}", *arguments],
            env=os.environ | {"TRITONMOE_ADAPTERS": str(adapters), "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True, encoding="utf-8",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        [path] = tmp_path.glob("*/adhoc.csv")
        return done.stdout, pd.read_csv(path).set_index("implementation").loc["made_up_sound"]

    _, first = sweep()
    time.sleep(1.1)
    said, second = sweep("timing=thorough")
    assert (first["method_revision"][-7:], second["method_revision"][-8:]) == ("default", "thorough")
    assert second["timestamp_utc"] > first["timestamp_utc"]
    assert "made_up_sound: right at 1 points" in said
    _, third = sweep("timing=thorough")
    assert third["timestamp_utc"] == second["timestamp_utc"], "it was there"
