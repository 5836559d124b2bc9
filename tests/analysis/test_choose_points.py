"""Which measured points answer `choose` where the one that is asked for was not measured, or by few systems."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from asking import DEVICE, ask


def test_a_batch_size_beyond_all_is_answered_by_the_nearest(results):
    text = ask(results, "model=mixtral", "tokens=4096")
    assert ", 512 tokens, skew 0" in text.splitlines()[0]
    assert text.splitlines()[1] == (
        "4096 tokens were not measured: this is the nearest, a factor of 8.00 away; measured are "
        "1, 2, 4, 8, 16, 32, 64, 128, 256, 512"
    )
    command = "`python experiments/sweep.py model=mixtral tokens=4096`"
    assert text.splitlines()[2] == f"On that GPU {command} measures what is asked"


@pytest.mark.parametrize(("asked", "below", "above"), [(33, 32, 64), (100, 64, 128), (511, 256, 512)])
def test_a_batch_size_between_measured_ones_is_answered_by_both_neighbours(results, asked, below, above):
    text = ask(results, "model=mixtral", f"tokens={asked}")
    assert f", {asked} tokens, skew 0" in text.splitlines()[0]
    first, second = text.split(f"\nAt {above} tokens:\n")
    first = first.split(f"\nAt {below} tokens:\n")[1]
    alone = [ask(results, "model=mixtral", f"tokens={tokens}") for tokens in (below, above)]
    for part, whole in zip((first, second), alone):
        assert part.strip() == whole.split("\n", 1)[1].strip()
    fastest = [re.search(r"Fastest of \d+: (\w+), ([\d.]+) µs", part).groups() for part in (first, second)]
    both = " and ".join(f"{name} ({us} µs) at {at}" for (name, us), at in zip(fastest, (below, above)))
    assert text.splitlines()[1].startswith(f"{asked} tokens were not measured: the fastest next to them is {both}; ")


def test_where_only_fast_was_timed_nothing_is_answered_for_another_batch_size(results, tmp_path):
    (tmp_path / DEVICE).mkdir()
    rows = pd.read_csv(results / DEVICE / "throughput.csv", dtype="string")
    alone = rows["tokens"].eq("64") & ~rows["implementation"].isin(["fast", "stream"])
    rows[~alone].to_csv(tmp_path / DEVICE / "throughput.csv", index=False)
    text = ask(tmp_path, "model=mixtral", "tokens=40")
    assert "At 32 tokens:" in text
    assert "At 128 tokens:" in text
    assert "At 64 tokens:" not in text
    alone = ask(tmp_path, "model=mixtral", "tokens=64")
    assert re.search(
        r"^Only fast was timed in this run: nothing to compare with; [\d.]+ µs, in a CUDA graph$", alone, re.MULTILINE
    )
    assert "Fastest of" not in alone
    assert "usual systems" not in alone


def test_a_batch_size_far_from_all_is_told_in_plain_numbers(results):
    assert " a factor of 16 away;" in ask(results, "model=mixtral", "tokens=8192")


@pytest.mark.parametrize(("asked", "taken"), [(0.5, "0"), (0.6, "1.2"), (0.7, "1.2"), (3, "1.2")])
def test_the_nearest_measured_skew_is_taken_and_said(results, asked, taken):
    lines = ask(results, "model=mixtral", "tokens=32", f"skew={asked}").splitlines()
    assert f", 32 tokens, skew {taken}, bf16" in lines[0]
    assert lines[1] == f"Skew {asked} was not measured: this is the nearest; measured are 0, 1.2"
    said = f"`python experiments/sweep.py model=mixtral tokens=32 skew={float(asked)}`"
    assert lines[2] == f"On that GPU {said} measures what is asked"
    assert any(line.startswith("Fastest of ") for line in lines)


def without(results, folder, drop):
    """A folder with the headline study alone, less the rows that `drop` says."""
    (folder / DEVICE).mkdir()
    rows = pd.read_csv(results / DEVICE / "headline.csv", dtype="string")
    rows[~drop(rows)].to_csv(folder / DEVICE / "headline.csv", index=False)
    return folder


USUAL = ["fast", "vllm", "sglang", "openai_triton_kernels"]


def test_the_usual_systems_that_were_not_timed_stand_in_front(results, tmp_path):
    untimed = "Of the usual systems, not timed here: "
    assert untimed not in ask(results, "model=mixtral", "tokens=32")
    lost = lambda rows: rows["tokens"].eq("32") & rows["implementation"].isin(["fast", "vllm"])  # noqa: E731
    folder = without(results, tmp_path, lost)
    assert ask(folder, "model=mixtral", "tokens=32").splitlines()[1] == f"{untimed}fast, vllm"
    assert untimed not in ask(folder, "model=mixtral", "tokens=128")


def test_neighbours_with_the_usual_systems_answer_unless_they_are_far(results, tmp_path):
    def lost(rows):
        return rows["tokens"].astype(int).ge(64) & rows["implementation"].isin(USUAL)

    folder = without(results, tmp_path, lost)
    near = ask(folder, "model=mixtral", "tokens=48").splitlines()
    assert ", 32 tokens, skew 0" in near[0]
    assert near[1].startswith(
        "48 tokens were not measured: this is the nearest with more systems, a factor of 1.50 away"
    )
    far = ask(folder, "model=mixtral", "tokens=200")
    assert far.count("Of the usual systems, not timed here: fast, vllm") == 2
    assert "At 128 tokens:" in far


def test_tokens_are_chosen_before_the_skew_and_of_skews_one_with_the_usual_systems(results, tmp_path):
    def lost(rows):
        skewed = rows["skew"].astype(float).eq(1.2)
        return skewed & (rows["tokens"].eq("8") | rows["tokens"].eq("32") & rows["implementation"].isin(USUAL))

    folder = without(results, tmp_path, lost)
    few = ask(folder, "model=mixtral", "tokens=8", "skew=1.2").splitlines()
    assert ", 8 tokens, skew 0, bf16" in few[0]
    assert few[1] == "Skew 1.2 was not measured at these tokens: this is the nearest; measured are 0"
    near = ask(folder, "model=mixtral", "tokens=32", "skew=1.1").splitlines()
    assert ", 32 tokens, skew 0, bf16" in near[0]
    exact = ask(folder, "model=mixtral", "tokens=32", "skew=1.2").splitlines()
    assert ", 32 tokens, skew 1.2, bf16" in exact[0]
    assert exact[1].startswith("Of the usual systems, not timed here: fast, ")
