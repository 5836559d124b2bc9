"""The one name under which the folders of this project are imported, from a checkout or installed.

`kernels` is also a package of Hugging Face's, so no folder may lie on an import path by its own name. In a checkout
this folder holds a link to each of them; an installed copy holds the folders themselves.
"""

from pathlib import Path

__version__ = "0.1.0"

ROOT = (Path(__file__).parent / "experiments").resolve().parent
"""The folder that holds kernels/, baselines/, experiments/, plots/ and conf/: the checkout or the installed package."""
