"""What holds of each published claim: `decide` reads the results and gives one finding a claim of claims.yaml."""

from .evidence import Evidence
from .finding import CLAIMS, Finding, Verdict, decide, rules_text

__all__ = ["CLAIMS", "Evidence", "Finding", "Verdict", "decide", "rules_text"]
