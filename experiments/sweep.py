"""Sweeps model shape, batch size, expert count and skew over every system, and writes a row for every point.

    python experiments/sweep.py model=mixtral skew=1.2
    python experiments/sweep.py model=deepseek_v3 tokens=[1,32,512] implementations=[paper_fused,megablocks_sparse] dtype=fp16
    python experiments/sweep.py model=mixtral model.num_experts=64 model.top_k=4
    python experiments/sweep.py -m model=mixtral,qwen2_paper skew=0,0.6,1.2
    python experiments/sweep.py model=gpt_oss_20b layer=native quant=native        # the model's own layer and weight format
    python experiments/sweep.py model=qwen3_30b_a3b routing=qwen3_30b_a3b_random   # recorded routing, layer by layer
    python experiments/sweep.py study=throughput dry_run=true    # points, systems, minutes, memory; runs nothing
    python experiments/sweep.py --list                           # every system, its version, whether it runs here

Rows go to results/<device>/<study>.csv as soon as they are known; the same command again goes on where it was cut.
-m runs every combination of what stands between commas; conf/config.yaml shows how to spread them over several GPUs.
"""  # noqa: E501  the lines are those of the README

from __future__ import annotations

if not __package__:
    import checkout  # noqa: F401  (the package of this checkout, onto the import path)

from tritonmoe_bench.experiments.sweeping.command import main

if __name__ == "__main__":
    main(__doc__)
