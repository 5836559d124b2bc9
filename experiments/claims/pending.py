"""Claims whose study is not there yet: undecided, naming what would decide them, until its rows and a rule are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .evidence import Evidence, NoEvidence, rows_text
from .finding import Finding, rule


def _wait(claim_id: str, study: str) -> None:
    """Registers a claim that waits for rows of a study."""
    awaited = f"the study {study} has rows"

    @rule(claim_id, f"Undecided until {awaited}, and a rule for them.")
    def waiting(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
        frame = evidence.study(study)
        raise NoEvidence(f"Since {awaited}, this claim needs a rule that reads them", rows_text(frame, 0))


_wait("fused-routing-neutral", "fusion")
_wait("warp-decode-throughput", "decode")
_wait("warp-decode-accuracy", "decode")
