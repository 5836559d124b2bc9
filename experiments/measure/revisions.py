"""The lock of everything that decides a number: a hash of each function, class and constant, as Python means it.

    python -m tritonmoe_bench.experiments.measure.revisions          # what differs from the lock; exit status 1 if any
    make revisions                                                   # writes the lock: no number can have changed

A hash is taken of the syntax tree without docstrings, comments and annotations (`tl.constexpr` apart, which a compiler
sees), and belongs to a name within its room. So a reformatted file and a moved function ask nothing. A changed body
asks once: raise the revision of the systems that run it, or the version of the method, or record that no number can
have changed (a renamed variable, say).
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tritonmoe_bench import ROOT

from .method import METHOD

LOCK = Path(__file__).with_name("revisions.json")

LOCKED = (
    "kernels", "experiments/interpreter", "experiments/measure", "experiments/traffic", "experiments/tuning",
    "experiments/workload", "experiments/sweeping/steady.py", "experiments/sweeping/worker.py",
)  # fmt: skip
"""Folders and files of which every function, class and constant counts: any may choose tiles, launch or measure."""
UNLOCKED = ("documentation.py", "method.py", "revisions.py")
"""Files of experiments/measure that measure nothing."""
FEW = "the revisions of Fast up to 2 and 16 tokens and of OutputCentric (baselines/fast.py, fast_variants.py)"
"""What to raise for the output-centric path, which a few tokens take."""
FEW_NAMES = frozenset({
    "FewTile", "FewTiles", "few_tokens", "few_beside_joined", "few_tiles", "few_gate_up_in_tiles", "few_fit", "_w4_few",
    "_fp8_few", "_fp8_few_tokens",
})  # fmt: skip
"""What belongs to it beside the files kernels/fast/few*.py."""
OWNERS = {
    "kernels/fast": "the revisions of Fast and SCHEDULED (baselines/fast.py), for the router UP_TO or BEYOND "
    "(baselines/parts/router.py), for e4m3 those of DeepGemm, FlashinferCutlass and FinegrainedFp8",
    "kernels/paper": "`revision` of the paper's pipelines (baselines/paper.py)",
    "kernels": "`revision` of every system of ours that runs it (baselines/fast.py, paper.py, stream.py)",
    "experiments": "the version in METHOD (experiments/measure/method.py) that it belongs to",
}
"""By folder, what to raise when a number can have changed."""


def hashes() -> dict[str, str]:
    """ "<room>:<name>" -> hash of each function, class and constant that may decide a number."""
    found: dict[str, list[str]] = {}
    for short, name, node in _deciding():
        found.setdefault(f"{_room(short)}:{name}", []).append(normalised(node))
    return {key: "+".join(sorted(values)) for key, values in sorted(found.items())}


def normalised(node: ast.AST) -> str:
    """Hash of a syntax tree without what cannot change a number."""
    tree = _Bare().visit(ast.parse(ast.unparse(node)))
    return hashlib.sha256(_told(tree).encode()).hexdigest()[:12]


def _told(node: object) -> str:
    """A syntax tree as text, which is the same in every release of Python: fields that are empty are left out."""
    if isinstance(node, ast.AST):
        fields = [f"{name}={_told(value)}" for name, value in ast.iter_fields(node) if value not in (None, [])]
        return f"{type(node).__name__}({', '.join(fields)})"
    return f"[{', '.join(map(_told, node))}]" if isinstance(node, list) else repr(node)


def current() -> dict[str, Any]:
    """What the lock would hold now: hashes, the revision of each system, the versions of the method."""
    from ..implementation.registry import implementations  # imports every adapter

    ours = {}
    for name, system in implementations().items():
        if type(system).__module__.startswith("tritonmoe_bench."):
            ours[name] = system.revision
            ours |= {f"{name} up to {most} tokens": revision for most, revision in system.revisions_up_to.items()}
    return {"sources": hashes(), "revisions": ours, "method": METHOD}


def locked() -> dict[str, Any]:
    """The committed lock."""
    return json.loads(LOCK.read_text(encoding="utf-8"))


def scope(entry: str) -> tuple[str, int | None]:
    """(system, the most tokens) of an entry of the lock's revisions; None: all that no other entry of it is for."""
    system, _, most = entry.partition(" up to ")
    return system, int(most.split()[0]) if most else None


def differences(lock: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line for each name whose hash is another than in the lock, with what to do."""
    old, new = lock["sources"], now["sources"]
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    paths = dict[str, list[str]]()
    for short, name, _ in _deciding() if changed else ():
        paths.setdefault(f"{_room(short)}:{name}", []).append(short)
    lines = []
    for key in changed:
        what = "is new" if key not in old else "is gone" if key not in new else "has changed"
        owner = _owner(key, paths.get(key, ()))
        lines.append(f"{key.replace(':', '/')} {what}: if a number can be another now, raise {owner}")
    for part in ("revisions", "method"):
        lines += [
            f"{part}: {name} is {now[part].get(name)}, the lock has {lock[part].get(name)}"
            for name in sorted({*lock[part], *now[part]})
            if lock[part].get(name) != now[part].get(name)
        ]
    return lines


def lock_hash(lock: Mapping[str, Any] | None = None) -> str:
    """Hash of the sources of a lock, by default the committed one: the same as long as no kernel and no measurement
    has changed."""
    sources = (lock or locked())["sources"]
    return hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()[:12]


def _room(short: str) -> str:
    """The family of a kernel, else the top folder: a name moves freely inside of it."""
    folders = short.split("/")[:-1]
    return "/".join(folders[:2]) if folders[0] == "kernels" else folders[0]


def _owner(key: str, paths: Iterable[str]) -> str:
    """What to raise for a name that these files define, of which there may be several, and of two owners."""
    room, name = key.split(":")
    others = OWNERS.get(room) or OWNERS[room.split("/")[0]]
    owners = [FEW if short.startswith("kernels/fast/few") or name in FEW_NAMES else others for short in paths]
    return " and ".join(dict.fromkeys(owners or [FEW if name in FEW_NAMES else others]))


def _deciding() -> Iterator[tuple[str, str, ast.AST]]:
    """(path, name, syntax tree) of each function, class and constant of the files under the lock."""
    paths = [path for where in LOCKED for path in (ROOT / where, *(ROOT / where).rglob("*.py")) if path.is_file()]
    for path in sorted(path for path in paths if path.name not in UNLOCKED):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield path.relative_to(ROOT).as_posix(), node.name, node
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield path.relative_to(ROOT).as_posix(), ", ".join(map(ast.unparse, targets)), node


class _Bare(ast.NodeTransformer):
    """Drops docstrings and annotations."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        return self._without_docstring(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        return self._without_docstring(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        constexpr = node.annotation is not None and "constexpr" in ast.unparse(node.annotation)
        node.annotation = ast.Name("constexpr", ast.Load()) if constexpr else None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        node.annotation = ast.Name("constexpr" if "constexpr" in ast.unparse(node.annotation) else "any", ast.Load())
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        self.generic_visit(node)
        node.values = [part for part in node.values if not isinstance(part, ast.Constant) or part.value]
        return node  # Python 3.12 puts an empty text behind some formats

    @staticmethod
    def _without_docstring(node: Any) -> Any:
        node.body = [item for item in node.body if not _is_text(item)] or [ast.Pass()]
        return node


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the lock, after revisions were raised as needed")
    now = current()
    if parser.parse_args().record:
        LOCK.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {LOCK}")
        return 0
    lines = differences(locked(), now)
    print("\n".join(lines) if lines else "nothing that decides a number has changed since the lock was written")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
