"""Systems that no package index has: the user clones them and names the folder in an environment variable, or has
`make checkouts` put them into .peers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tritonmoe_bench.experiments import checkout
from tritonmoe_bench.experiments.implementation.contract import Implementation

from . import trees
from .installed import installed_version


@dataclass(frozen=True)
class Checkout:
    """A repository on GitHub that the user clones.

    package: the folder in it that is imported; distribution: its name where it is installed instead; build: what has to
    be typed after cloning, as the end of a command line; inside: the folder of the repository that holds the package.
    """

    name: str
    package: str
    repository: str
    distribution: str
    build: str = ""
    inside: str = ""

    @property
    def variable(self) -> str:
        """The environment variable that holds the folder."""
        return f"TRITONMOE_{self.name.upper()}_PATH"

    def search_path(self) -> list[Path]:
        """The folder, if the variable names one that holds the package; where it is not set, that of .peers if it
        was made; else nothing."""
        value = os.environ.get(self.variable, "")
        folder = Path(value).expanduser().resolve() if value else trees.folder(self.name)
        return [folder] if (value or trees.record(folder)) and (folder / self.package).is_dir() else []

    def version(self) -> str:
        """`commit <hash>` by the checkout's BUILD.json or history, `checkout` without either, else the version that is
        installed."""
        for folder in self.search_path():
            commit = trees.record(folder).get("commit") or checkout.commit_of(folder, self.package)
            return f"commit {commit[:12]}" if commit else "checkout"
        return installed_version(self.distribution)

    def how_to_get(self) -> str:
        """What is wrong with the variable, if it is set, and the one command that gets the system."""
        value = os.environ.get(self.variable, "")
        wrong = f"{self.variable}={value} holds no {self.package}/; " if value and not self.search_path() else ""
        clone = f"git clone https://github.com/{self.repository} {self.name}"
        folder = "/".join(filter(None, ("$PWD", self.name, self.inside)))
        return f"{wrong}{clone}{self.build} && export {self.variable}={folder}"


class CheckoutSystem(Implementation):
    """A system out of a `Checkout`, which several systems may share."""

    checkout: ClassVar[Checkout]

    def version(self) -> str:
        return self.checkout.version()

    def search_path(self) -> list[Path]:
        return self.checkout.search_path()
