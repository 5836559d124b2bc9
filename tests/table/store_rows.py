"""A row of a CSV as tests have it."""

ROW = {"run_id": "r1", "case_hash": "abc", "implementation": "x", "launch": "graph", "status": "ok", "p50_us": 3.5,
       "timestamp_utc": "2026-01-01T00:00:00Z"}  # fmt: skip
