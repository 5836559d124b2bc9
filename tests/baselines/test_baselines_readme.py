"""The README of the baselines names every system that there is, and no other."""

import re
from pathlib import Path

from tritonmoe_bench.experiments.implementation import registry

README = Path(__file__).resolve().parents[2] / "baselines" / "README.md"


def test_every_system_is_named():
    text = README.read_text(encoding="utf-8")
    ours = text.split("Ours are")[1].split("The others:")[0]
    named = set(re.findall(r"`([\w*]+)`", ours)) | set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    systems = {re.sub(r"^fastvariant_.+", "fastvariant_*", name) for name in registry.implementations()}
    assert systems == named


def test_every_folder_is_named():
    text = README.read_text(encoding="utf-8")
    folders = {path.name for path in README.parent.iterdir() if path.is_dir() and not path.name.startswith(("_", "."))}
    assert set(re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)) == folders
