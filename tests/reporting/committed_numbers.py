"""Every number of the README's block and of the report, as lines of text that a change of wording leaves the same.

    make report && python tests/reporting/committed_numbers.py     records tests/fixtures/committed/report.txt anew

A line is a row of a table, an item of a list that begins with a name, or the prose of a section: where it stands, its
name, and its numbers. Numbers of a sentence are sorted, as a better sentence may give them in another order; a cell of
a table keeps their order, and the names of systems among them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "committed" / "report.txt"
NUMBER = r"(?<![\w.\-])\d+(?:\.\d+)*(?=x?\b)"
SYSTEM = r"\b(?:fast|stream|vllm|sglang|scattermoe|tutel|fastmoe|tritonmoe|[a-z0-9]+(?:_[a-z0-9]+)+)\b"
SENTENCES = ("Claims",)
"""Sections whose tables hold sentences."""
DEVICE = "nvidia-h200"
AGE = r"\d+(?:–\d+)? commits? old"
"""Changes with each commit to the code."""
OF_THE_CODE = "**Older rows.**"
"""Begins the paragraph that changes with the code and not with the rows."""


def lines(text: str, document: str) -> list[str]:
    """The numbers of a Markdown text, sorted."""
    found, prose = [], {}
    text = re.sub(AGE, "", text)
    for section, table, line in _placed(text):
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            numbers = [_cell(cell, section in SENTENCES or document == "README") for cell in cells[1:]]
            found.append(f"{document} > {section}{table} > {cells[0].strip()} | {' | '.join(numbers)}")
        elif item := re.match(r"- (?:\*\*)?([\w-]+)(?:\*\*)?: ", line):
            found.append(f"{document} > {section}{table} > {item[1]}: {_sorted(line[item.end() :])}")
        else:
            prose[section + table] = f"{prose.get(section + table, '')} {line}"
    found += [f"{document} > {section}: {_sorted(line)}" for section, line in prose.items() if _sorted(line)]
    return sorted(found)


def _placed(text: str) -> Iterator[tuple[str, str, str]]:
    """(section, table in it, line) of each line that says something: no heading, no head of a table, no picture."""
    section = table = ""
    every = text.splitlines()
    for line, below in zip(every, [*every[1:], ""]):
        if line.startswith("## "):
            section, table = line[3:], ""
        elif line.startswith("### "):
            table = f" > {line[4:]}"
        elif line.startswith((OF_THE_CODE, "# ", "![", "<a", "<div", "</div")) or re.fullmatch(r"\s*|\*.*\*", line):
            continue
        elif not (line.startswith("|") and (_rule(line) or _rule(below))):
            yield section, table, line


def _rule(line: str) -> bool:
    return line.startswith("|") and not set(line) - set("|-: ")


def _cell(text: str, sentence: bool) -> str:
    return _sorted(text) if sentence else " ".join(re.findall(f"{NUMBER}|{SYSTEM}", text))


def _sorted(text: str) -> str:
    return " ".join(sorted(re.findall(NUMBER, re.sub(r"\]\([^)]*\)", "]", text))))


def of_checkout(root: Path) -> list[str]:
    """The numbers of README.md's block and results/REPORT.md as they lie in a checkout."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    block = readme.partition("<!-- claims:begin -->")[2].partition("<!-- claims:end -->")[0]
    return lines(block, "README") + lines((root / "results" / "REPORT.md").read_text(encoding="utf-8"), "REPORT")


def rendered(results: Path, root: Path) -> tuple[str, str]:
    """The README's block and the report from the rows of a results folder, with the figures of `root`."""
    from tritonmoe_bench.experiments.reporting.context import make_material
    from tritonmoe_bench.experiments.reporting.render import readme_text, report_text

    material = make_material(results, root / "plots" / "figures", DEVICE)
    return readme_text(material, root), report_text(material, root / "results")


if __name__ == "__main__":
    FIXTURE.write_text("\n".join(of_checkout(Path(__file__).resolve().parents[2])) + "\n", encoding="utf-8")
    print(f"wrote {FIXTURE}")
