"""Systems that no package index has: the user clones them and names the folder in an environment variable."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import ClassVar

from tritonmoe_bench.experiments.implementation.contract import Implementation

from . import tree


class CheckoutSystem(Implementation):
    """A system that the user clones. package: the folder of its checkout that is imported; distribution: its name
    where it is installed."""

    package: ClassVar[str]
    distribution: ClassVar[str]

    def version(self) -> str:
        return version(self.name, self.package, self.distribution)

    def search_path(self) -> list[Path]:
        return search_path(self.name, self.package)


def variable(name: str) -> str:
    """The environment variable that holds the checkout of the system `name`."""
    return f"TRITONMOE_{name.upper()}_PATH"


def search_path(name: str, package: str) -> list[Path]:
    """The checkout of `name`, if its variable names a folder that holds `package`; else nothing."""
    value = os.environ.get(variable(name), "")
    folder = Path(value).expanduser().resolve()
    return [folder] if value and (folder / package).is_dir() else []


def version(name: str, package: str, distribution: str) -> str:
    """`commit <hash>` of the checkout, else the version of what is installed, empty if neither is there."""
    for folder in search_path(name, package):
        command = ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"]
        try:
            done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True)
        except (OSError, subprocess.CalledProcessError):
            return "checkout"
        return f"commit {done.stdout.strip()}"
    return tree.installed_version(distribution)


def how_to_get(name: str, package: str, repository: str, build: str = "") -> str:
    """What is wrong with the variable, if it is set, and the one command that gets the system."""
    value = os.environ.get(variable(name), "")
    wrong = f"{variable(name)}={value} holds no {package}/; " if value and not search_path(name, package) else ""
    clone = f"git clone https://github.com/{repository} {name}"
    return f"{wrong}{clone}{build} && export {variable(name)}=$PWD/{name}"
