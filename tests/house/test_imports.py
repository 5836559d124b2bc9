"""`kernels` is also somebody else's package: ours and a foreign one import side by side, installed or not."""

import ast
import errno
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tritonmoe_bench.experiments import checkout

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("kernels", "baselines", "experiments", "plots", "conf")
"""What is installed, but for documents and figures."""
ENDINGS = (".py", ".json", ".yaml", ".cu", ".patch", ".j2", ".css")
COMMANDS = ("sweep", "choose", "report", "papertests", "portability", "tune")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
BIND = f"import sys; sys.path.insert(0, {str(ROOT / 'experiments')!r}); import checkout\n"
BOTH = "import kernels, tritonmoe_bench.kernels as ours; print(kernels.WHOSE, ours.__file__)"


@pytest.fixture
def foreign(tmp_path):
    package = tmp_path / "foreign" / "kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("WHOSE = 'foreign'\n", encoding="utf-8")
    return package.parent


def python(*arguments, path, cwd, executable=sys.executable, **environment):
    settings = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))} | environment
    return subprocess.run(
        [executable, *arguments], capture_output=True, encoding="utf-8", errors="replace", env=settings, cwd=cwd
    )


def copy_checkout(source):
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("figures", "__pycache__", ".*"))
    shutil.copytree(ROOT / ".src", source / ".src", symlinks=True, ignore=shutil.ignore_patterns("*.egg-info"))
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, source)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the package installed from a copy of the checkout, so that what was built there earlier, of files
    that are no more, is not installed with it."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    copy_checkout(source)
    built = python("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check",
                   "--no-compile", "--target", str(site), str(source), path=[], cwd=source)  # fmt: skip
    assert built.returncode == 0, built.stderr
    return site


def test_both_import_from_an_installation(foreign, site, tmp_path):
    assert {entry.name for entry in site.iterdir() if entry.is_dir() and "-info" not in entry.name} == {
        "tritonmoe_bench"
    }
    done = python("-c", BOTH, path=[foreign, site], cwd=tmp_path)
    assert done.stdout.startswith("foreign "), done.stderr
    assert str(site) in done.stdout


@pytest.fixture(scope="module")
def editable(tmp_path_factory):
    """The Python of an environment into which a copy of the checkout is installed as editable, and the copy."""
    folder = tmp_path_factory.mktemp("editable")
    copy_checkout(folder / "checkout")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    own = folder / "venv" / "bin" / "python"
    # The packages of this environment, behind those of its own.
    [packages] = (folder / "venv" / "lib").glob("python*/site-packages")
    (packages / "outer.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n", encoding="utf-8")
    built = python("-m", "pip", "--python", str(own), "install", "-q", "--no-deps", "--no-build-isolation",
                   "--disable-pip-version-check", "-e", str(folder / "checkout"), path=[], cwd=folder)  # fmt: skip
    assert built.returncode == 0, built.stderr
    return own, folder / "checkout"


def test_both_import_beside_an_editable_installation_which_is_a_plain_path(editable, foreign, tmp_path):
    own, checkout_copy = editable
    done = python("-c", BOTH, path=[foreign], cwd=tmp_path, executable=own)
    assert done.stdout.split() == ["foreign", f"{checkout_copy}/.src/tritonmoe_bench/kernels/__init__.py"], done.stderr
    [link] = own.parents[1].glob("lib/python*/site-packages/__editable__*tritonmoe*")
    assert link.suffix == ".pth"
    assert link.read_text(encoding="utf-8").split() == [f"{checkout_copy}/.src"]


@pytest.mark.parametrize("name", [*COMMANDS, "draw"])
def test_every_command_runs_beside_a_foreign_package(name, foreign, site, editable, tmp_path):
    folder = "plots" if name == "draw" else "experiments"
    own, checkout_copy = editable
    for executable, arguments, paths in (
        (sys.executable, [str(ROOT / folder / f"{name}.py")], [foreign]),
        (sys.executable, ["-m", f"tritonmoe_bench.{folder}.{name}"], [foreign, site]),
        (own, [str(checkout_copy / folder / f"{name}.py")], [foreign]),
    ):
        done = python(*arguments, "--help", path=paths, cwd=tmp_path, executable=executable)
        assert (done.returncode, done.stderr) == (0, "")
        assert "Keys, with their defaults" in done.stdout


LACKING = "import sys; sys.modules.update(dict.fromkeys({packages!r})); "


def test_the_kernels_alone_need_no_package_of_the_harness(site, tmp_path):
    """As after `pip install tritonmoe-bench`, which brings torch, triton and numpy."""
    [metadata] = site.glob("tritonmoe_bench-*.dist-info/METADATA")
    needed = [line for line in metadata.read_text(encoding="utf-8").splitlines() if line.startswith("Requires-Dist: ")]
    plain = {re.split(r"[^\w.-]", line.split()[1])[0] for line in needed if "extra ==" not in line}
    harness = {re.split(r"[^\w.-]", line.split()[1])[0] for line in needed if "extra == 'harness'" in line or
               'extra == "harness"' in line}  # fmt: skip
    assert plain == {"torch", "triton", "numpy"}
    assert {"hydra-core", "pandas", "matplotlib", "jinja2", "pyyaml"} <= harness
    packages = ["hydra", "omegaconf", "pandas", "matplotlib", "jinja2", "yaml", "tqdm", "PIL", "pynvml", "markdown_it"]
    assert len(packages) == len(harness) + 1  # hydra brings omegaconf
    modules = [name.removesuffix(".py").replace("/", ".") for name in sorted(files(ROOT)) if name.startswith("kernels/")
               and name.endswith(".py")]  # fmt: skip
    code = LACKING.format(packages=packages) + "".join(f"import tritonmoe_bench.{name}\n" for name in modules)
    done = python("-c", code + "from tritonmoe_bench.kernels import fast_moe", path=[site], cwd=tmp_path,
                  TRITON_INTERPRET="1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (site / "tritonmoe_bench" / "py.typed").is_file()


@pytest.mark.parametrize(("name", "package"), [("experiments.sweep", "hydra"), ("plots.draw", "matplotlib")])
def test_a_command_of_an_installed_copy_says_how_to_get_the_harness(name, package, site, tmp_path):
    raising = f"raise ModuleNotFoundError('none', name='{package}_')"
    (tmp_path / f"{package}.py").write_text(raising, encoding="utf-8")
    done = python("-m", f"tritonmoe_bench.{name}", path=[tmp_path, site], cwd=tmp_path)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {sys.executable} has no package {package}_, which ")
    assert line.endswith("in an environment of your own pip install 'tritonmoe-bench[harness]' does")


@pytest.mark.parametrize("script", COMMANDS)
def test_a_missing_package_is_one_line_that_says_how_to_get_it(script, tmp_path):
    done = python("-S", str(ROOT / "experiments" / f"{script}.py"), path=[], cwd=tmp_path)  # without site-packages
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert re.match(f"error: {sys.executable} has no package (hydra|numpy|pandas), which {ROOT / 'experiments'}", line)
    assert "make setup" in line


def test_every_import_of_ours_is_a_file_that_a_type_checker_finds():
    """In the one folder that mypy and pyright are told of."""
    assert 'extraPaths = [".src", "experiments"]' in PYPROJECT
    assert 'mypy_path = ".src"' in PYPROJECT
    wanted = {}
    for path in [*ROOT.glob("*/**/*.py"), ROOT / ".src" / "tritonmoe_bench" / "__init__.py"]:
        if any(part.startswith(".") for part in path.relative_to(ROOT).parts[:-1]):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.ImportFrom)
                and not node.level
                and (node.module or "").startswith("tritonmoe_bench")
            ):
                wanted[node.module] = path
            if isinstance(node, ast.Import):
                wanted.update({each.name: path for each in node.names if each.name.startswith("tritonmoe_bench")})
    assert len(wanted) > 100
    for module, path in wanted.items():
        file = ROOT / ".src" / module.replace(".", "/")
        assert file.with_suffix(".py").is_file() or (file / "__init__.py").is_file(), f"{module} in {path}"


def test_a_python_too_old_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit, match=r"allowed are 3\.10 and up"):
        runpy.run_path(str(ROOT / "experiments" / "checkout.py"))
    assert 'requires-python = ">=3.10"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/x/a.csv"), "cannot write /x/a.csv: Permission denied"),
        (FileExistsError(errno.EEXIST, "File exists", "/x"), "cannot write /x: File exists"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "cannot write /x: Read-only file system"),
        (OSError(errno.ENOSPC, "No space left"), "cannot write what was to be written: No space left"),
        (PermissionError(errno.EPERM, "Operation not permitted"), None),  # of no file: that of os.kill
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), None),
        (KeyError("p50_us"), None),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line(error, text):
    assert checkout.one_line(error) == text


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path))
    assert checkout.one_line(error) == f"cannot read {tmp_path}: Permission denied"


def test_other_errors_keep_their_traceback(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text(BIND + "import tritonmoe_bench.experiments.nowhere\n", encoding="utf-8")
    done = python(str(broken), path=[], cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback"), done.stderr
    assert "No module named 'tritonmoe_bench.experiments.nowhere'" in done.stderr


def test_every_module_and_all_data_are_installed(site):
    assert files(site / "tritonmoe_bench") == files(ROOT)


def files(root):
    """What an installation needs, below `root`."""
    return {
        str(path.relative_to(root))
        for folder in FOLDERS
        for path in (root / folder).rglob("*")
        if path.suffix in ENDINGS and not any(part.startswith(".") for part in path.relative_to(root).parts)
    }


def test_both_import_from_a_checkout(foreign, tmp_path):
    for cwd in (tmp_path, ROOT, ROOT / "experiments"):
        done = python("-c", BIND + BOTH, path=[foreign], cwd=cwd)
        assert done.stdout.startswith("foreign "), done.stderr
        assert str(ROOT) in done.stdout


def test_a_script_run_as_a_file_keeps_its_folder_off_the_path(tmp_path):
    show = tmp_path / "show.py"
    show.write_text(
        f"import sys; sys.path.insert(0, ''); sys.path.insert(0, {str(ROOT / 'experiments')!r})\n"
        "import checkout; print(sys.path)",
        encoding="utf-8",
    )
    done = python(str(show), path=[], cwd=ROOT)
    assert str(ROOT / "experiments") not in done.stdout
    assert "''" not in done.stdout


@pytest.mark.parametrize("installed", [False, True])
def test_everything_imports_with_no_gpu_and_no_megablocks(installed, site, tmp_path):
    # baselines/builds holds scripts that are run as files.
    names = [name for name in files(ROOT) if name.endswith(".py") and "baselines/builds/" not in name]
    modules = [
        f"tritonmoe_bench.{name.removesuffix('.py').replace('/', '.')}".removesuffix(".__init__") for name in names
    ]
    code = ("" if installed else BIND) + "".join(f"import {module}\n" for module in sorted(modules))
    # Of which an installation needs the sources, and the shapes of conf/.
    code += "from tritonmoe_bench.experiments.measure import revisions\n"
    code += "from tritonmoe_bench.experiments.workload.config import load_model\n"
    code += "assert not revisions.differences(revisions.locked(), revisions.current())\n"
    code += "assert load_model('mixtral').top_k == 2\n"
    code += "print(sys.modules['tritonmoe_bench.kernels'].__file__)"
    done = python("-c", f"import sys\n{code}", path=[site] if installed else [], cwd=tmp_path,
                  CUDA_VISIBLE_DEVICES="", TRITON_INTERPRET="1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    where = site if installed else ROOT / ".src"
    assert done.stdout.strip() == str(where / "tritonmoe_bench" / "kernels" / "__init__.py")
