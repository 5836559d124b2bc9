"""What holds of each published claim: `decide` reads the results and gives one finding for each claim of a file.

A claim is decided by a function of a module in this folder that `rule` registers; every module is found. The function
returns a verdict and numbers. What they mean in words stands in experiments/reporting/templates/claims/<claim id>.j2.
"""

from .evidence import Evidence, Outcomes
from .finding import CLAIMS, DISPUTED, Claim, Finding, Verdict, decide, load_claims

__all__ = ["CLAIMS", "DISPUTED", "Claim", "Evidence", "Finding", "Outcomes", "Verdict", "decide", "load_claims"]
