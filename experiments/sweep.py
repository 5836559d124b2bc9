"""The entry: sweeps model shape, batch size, expert count and skew over every implementation, rows into CSVs.

    python experiments/sweep.py model=mixtral skew=1.2
    python experiments/sweep.py study=throughput dry_run=true
    python experiments/sweep.py -m model=mixtral,qwen2_paper skew=0,0.6,1.2
    python experiments/sweep.py -m study=throughput model=mixtral,qwen2_paper hydra/launcher=submitit_local
    python experiments/sweep.py list=true

conf/config.yaml says what every key means. Rows go to results/<device>/<study>.csv as soon as they are known; the same
command again goes on where it was cut.
"""

from __future__ import annotations

if not __package__:
    import checkout  # noqa: F401  (the package of this checkout, onto the import path)

from tritonmoe_bench.experiments.sweeping.command import main

if __name__ == "__main__":
    main()
