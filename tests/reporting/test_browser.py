"""The page in a browser: a click on a filter and on a head does what it says, and nothing is wider than a phone.

Needs a Chromium (`apt-get install chromium`); it is started without a driver, on a page with the clicks in it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from tritonmoe_bench.experiments.reporting.page import to_html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
POINTS = [("Mixtral", 1, "≈12.5 e"), ("Mixtral", 8, "9.0"), ("Qwen", 1, "-"), ("Qwen", 8, "100"), ("Qwen", 32, "1,024"),
          ("DeepSeek", 32, "‼11")]  # fmt: skip
MARKDOWN = "# A report\n\n## One section\n\n" + "\n".join(
    ["| model | tokens | fast, µs |", "| --- | ---: | ---: |", *(f"| {m} | {t} | {us} |" for m, t, us in POINTS)]
)
CLICKS = """
const cells = (place) => [...document.querySelectorAll(".wide tbody tr")].filter((row) => !row.hidden)
  .map((row) => row.cells[place].textContent);
const told = {};
const [model] = document.querySelectorAll(".filters select");
model.value = "Qwen";
model.dispatchEvent(new Event("change"));
told.filtered = cells(0);
told.count = document.querySelector(".filters output").textContent;
model.value = "";
model.dispatchEvent(new Event("change"));
const head = document.querySelectorAll("th button")[2];
head.click();
told.ascending = cells(2);
told.sort = head.parentElement.getAttribute("aria-sort");
head.click();
told.descending = cells(2);
told.filters = [...document.querySelectorAll(".filters select")].map((select) => select.name);
told.wider = document.documentElement.scrollWidth > document.documentElement.clientWidth;
document.body.insertAdjacentHTML("beforeend", "<pre id=told></pre>");
document.getElementById("told").textContent = JSON.stringify(told);
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, object]:
    """What the page says after the clicks."""
    folder = tmp_path_factory.mktemp("page")
    page = folder / "report.html"
    html = to_html(MARKDOWN, folder).replace("</body>", f"<script>{CLICKS}</script></body>")
    page.write_text(html, encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,800",
        f"--user-data-dir={folder}/profile", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=120)
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout)
    assert found, done.stderr
    return json.loads(found[1])


def test_a_filter_leaves_its_rows_and_counts_them(told):
    assert told["filters"] == ["model", "tokens"]
    assert told["filtered"] == ["Qwen"] * 3
    assert told["count"] == "3 of 6 rows"


def test_a_head_sorts_by_number_and_puts_what_is_none_last(told):
    assert told["sort"] == "ascending"
    assert told["ascending"] == ["9.0", "‼11", "≈12.5 e", "100", "1,024", "-"]
    assert told["descending"] == ["1,024", "100", "≈12.5 e", "‼11", "9.0", "-"]


def test_nothing_is_wider_than_a_phone(told):
    assert told["wider"] is False
