"""`kernels` is also somebody else's package: ours and a foreign one import side by side, installed or not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BOTH = "import kernels, tritonmoe_bench.kernels as ours; print(kernels.WHOSE, ours.__file__)"


@pytest.fixture
def foreign(tmp_path):
    package = tmp_path / "foreign" / "kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("WHOSE = 'foreign'\n")
    return package.parent


def python(*arguments, path, cwd):
    settings = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=settings, cwd=cwd)


def test_both_import_from_an_installation(foreign, tmp_path):
    site = tmp_path / "site"
    built = python("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check",
                   "--target", str(site), str(ROOT), path=[], cwd=tmp_path)  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert {entry.name for entry in site.iterdir() if entry.is_dir() and "-info" not in entry.name} == {
        "tritonmoe_bench"
    }
    done = python("-c", BOTH, path=[foreign, site], cwd=tmp_path)
    assert done.stdout.startswith("foreign "), done.stderr
    assert str(site) in done.stdout


def test_both_import_from_a_checkout(foreign, tmp_path):
    bind = f"import runpy; runpy.run_path({str(ROOT / 'experiments' / 'checkout.py')!r}); "
    for cwd in (tmp_path, ROOT, ROOT / "experiments"):
        done = python("-c", bind + BOTH, path=[foreign], cwd=cwd)
        assert done.stdout.startswith("foreign "), done.stderr
        assert str(ROOT) in done.stdout


def test_a_script_run_as_a_file_keeps_its_folder_off_the_path(tmp_path):
    show = tmp_path / "show.py"
    show.write_text(
        f"import runpy, sys; sys.path.insert(0, {str(ROOT / 'experiments')!r}); sys.path.insert(0, '')\n"
        f"runpy.run_path({str(ROOT / 'experiments' / 'checkout.py')!r}); print(sys.path)"
    )
    done = python(str(show), path=[], cwd=ROOT)
    assert str(ROOT / "experiments") not in done.stdout
    assert "''" not in done.stdout


@pytest.mark.parametrize("package", ["kernels", "baselines", "experiments", "plots"])
def test_every_module_imports_with_no_gpu_and_no_megablocks(package, tmp_path):
    entries = ("sweep", "worker", "draw", "report", "provenance", "__main__")
    names = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / package).rglob("*.py")
             if path.stem not in entries and not any(part.endswith("_build") for part in path.parts)]  # fmt: skip
    modules = [f"tritonmoe_bench.{'.'.join(name.parts)}".removesuffix(".__init__") for name in names]
    code = f"import runpy; runpy.run_path({str(ROOT / 'experiments' / 'checkout.py')!r})\n"
    code += "".join(f"import {module}\n" for module in sorted(modules))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
                          env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
