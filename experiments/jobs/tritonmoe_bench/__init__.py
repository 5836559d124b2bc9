"""The name `tritonmoe_bench` for processes that none of our scripts starts: this checkout, as checkout.py binds it."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[3])]
