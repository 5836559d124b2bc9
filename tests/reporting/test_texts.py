"""Templates: each claim has its texts, each mark its meaning, and no cell of a table is markup."""

import pytest
from claim_rows import frame, row
from markdown_it import MarkdownIt

from tritonmoe_bench.experiments.analysis import age
from tritonmoe_bench.experiments.claims import DISPUTED, load_claims
from tritonmoe_bench.experiments.reporting import headline, points, texts
from tritonmoe_bench.experiments.reporting.sections import provenance


def test_every_claim_has_a_template_and_every_template_a_claim():
    folder = texts.TEMPLATES / "claims"
    published, disputed = load_claims(), load_claims(DISPUTED)
    assert {path.stem for path in folder.glob("*.j2")} - {"parts"} == {claim.id for claim in [*published, *disputed]}
    for claim in [*published, *disputed]:
        rule = texts.say(f"claims/{claim.id}.j2", "rule", figures=claim.figures, **claim.constants)
        assert rule.endswith(".")
        assert "does not hold if" in rule or claim in disputed
        assert bool(claim.threads) == (claim in disputed)
        named = {"figures": claim.figures, **claim.constants}
        assert all(texts.say(f"claims/{claim.id}.j2", macro, **named) for macro in ("title", "claimed"))


MARKUP = [
    "a|b",
    "<b>bold</b> & more",
    "__init__ of *args",
    "a_b_",
    "[link](there)",
    "`code`",
    "two\nlines",
    r"b\s",
    "~~x~~",
]


@pytest.mark.parametrize("text", MARKUP)
def test_a_cell_shows_its_text_as_it_is(text):
    line = f"| head |\n| --- |\n| {texts.cell(text)} |"
    html = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(line)
    shown = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"<td>{shown}</td>" in html


def fast_and(other, limit):
    point = {"study": "headline", "dtype": "bf16", "limit_us": limit}
    rows = frame([row("fast", 100.0, **point), row(other, 150.0, **point), row("stream", limit, **point)])
    return rows.assign(stream_us=limit)


@pytest.mark.parametrize(("limit", "share"), [(90.0, "90 %"), (172.0, "‼172 %")])
def test_a_latency_below_the_measured_limit_is_marked_in_every_table(limit, share):
    rows = fast_and("vllm", limit)
    assert headline.field_table({"gpu": rows}).rows[0][6] == share
    table = points.point_table("headline", {"gpu": rows})
    assert dict(zip(table.header, table.rows[0]))["fast"] == f"{'‼' if '‼' in share else ''}100 e"


def test_the_report_says_which_rows_are_older_and_by_which_lock(monkeypatch):
    lock = {"method": {"latency": 2}, "revisions": {"fast": 4}}
    monkeypatch.setattr(age, "locked", lambda: lock)
    monkeypatch.setattr(provenance, "lock_hash", lambda: "abc123")

    def told(revision, version):
        rows = frame([row("fast", 1.0, revision=revision, method_revision=f"workload1+latency{version}+default")])
        return provenance.older_rows({"throughput": rows})

    assert "latency, version 1 (now 2), in throughput." in told(3, 1)
    assert "fast, revision 3 (now 4), in throughput." in told(3, 1)
    assert "lock `abc123`" in told(3, 1)
    assert told(4, 2).startswith("**Older rows.** None: ")
    assert "lock `abc123`" in told(4, 2)


def test_rows_of_another_commit_with_the_same_lock_are_of_unchanged_kernels(monkeypatch):
    locks = {"a" * 40: "now", "b" * 40: "before", "c" * 40: ""}
    monkeypatch.setattr(age, "lock_of", locks.__getitem__)
    monkeypatch.setattr(age, "lock_hash", lambda: "now")
    frames = {
        study: frame([row("fast", 1.0, git_commit=commit, revision=99, method_revision="") for commit in commits])
        for study, commits in {"headline": ["a" * 40], "skew": ["a" * 40, "b" * 40], "energy": ["c" * 40]}.items()
    }
    told = provenance.older_rows(frames)
    assert told.endswith("unchanged since commit aaaaaaaaaa, of which headline, skew have rows.")
    assert "unchanged" not in provenance.older_rows({"energy": frames["energy"]})


def test_the_lock_of_a_commit_is_found_by_git(monkeypatch):
    monkeypatch.setattr(age.checkout, "git", lambda *words: '{"sources": {"a": "1"}}' if "x:" in words[2] else None)
    assert [age.lock_of("x"), age.lock_of("y")] == [age.lock_hash({"sources": {"a": "1"}}), ""]
