"""The commit that rows carry."""

import subprocess

from tritonmoe_bench.experiments.table import provenance


def test_a_copy_inside_of_another_repository_has_no_commit(monkeypatch, tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    copy = tmp_path / "copy"
    (copy / "experiments").mkdir(parents=True)
    (copy / "experiments" / "sweep.py").touch()
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.delenv("TRITONMOE_GIT_COMMIT", raising=False)
    monkeypatch.setattr(provenance, "ROOT", copy)
    assert provenance.commit() == ("unknown", "unknown")
    for command in (["add", "copy"], ["commit", "-q", "-m", "two"]):  # now it is a part of that repository
        subprocess.run([*git, *command], check=True)
    commit, dirty = provenance.commit()
    assert len(commit) == 40
    assert dirty is False
    (copy / "experiments" / "sweep.py").write_text("changed", encoding="utf-8")
    assert provenance.commit() == (commit, True)
