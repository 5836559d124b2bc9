#!/usr/bin/env bash
# How wall_time.txt and the rows beside it were made, but for the names of files: one multirun of two equal jobs (bf16 and fp16) on two cards of a
# host, then on one, each with empty Triton caches, in the repository root, with the `spread` extra installed:
#   OUT=/tmp/two_cards bash results/nvidia-h200/archive/two_cards/measure.sh
set -euo pipefail
PY=${PY:-python3}
OUT=${OUT:?a folder for the rows}
spread() {  # folder, cards
  local start end
  export TRITON_CACHE_DIR=/tmp/triton-$1 TMPDIR=/tmp/tmp-$1
  mkdir -p "$TMPDIR"
  start=$(date +%s.%N)
  CUDA_VISIBLE_DEVICES=$2 $PY experiments/sweep.py -m study=throughput dtype=bf16,fp16 'tokens=[1,512]' \
    'implementations=[stream,fast]' results="$OUT/$1" hydra/launcher=submitit_local
  end=$(date +%s.%N)
  echo "$1 card(s) [$2]: $($PY -c "print(round($end - $start, 1))") s wall" | tee -a "$OUT/wall_time.txt"
  grep -h "pinned\|waiting" "$TMPDIR"/tritonmoe-bench-multirun/.submitit/*/*_log.out | tee -a "$OUT/wall_time.txt"
}
mkdir -p "$OUT"
spread two 0,1
spread one 0
$PY - "$OUT" <<'PY' | tee -a "$OUT/wall_time.txt"
import csv, glob, statistics, sys
rows = {}
for name in ("one", "two"):
    (path,) = glob.glob(f"{sys.argv[1]}/{name}/*/throughput.csv")
    table = list(csv.DictReader(open(path)))
    keys = [(r["case_hash"], r["implementation"], r["launch"]) for r in table]
    assert len(keys) == len(set(keys)), f"{name}: a row is doubled"
    rows[name] = dict(zip(keys, table))
    cards = sorted({r["device_uuid"] for r in table})
    print(f"{name}: {len(table)} rows, {sum(r['status'] == 'ok' for r in table)} ok, runs "
          f"{sorted({r['run_id'] for r in table})}, {len(cards)} card(s) {cards}, dtype by card "
          f"{sorted({(r['device_uuid'][:8], r['dtype']) for r in table})}")
assert rows["one"].keys() == rows["two"].keys(), "the two runs hold different points"
ratios = [float(rows["two"][k]["p50_us"]) / float(rows["one"][k]["p50_us"]) for k in rows["one"]
          if rows["one"][k]["p50_us"] and rows["two"][k]["p50_us"] and k[2] == "graph"]
print(f"p50 on two cards / on one, in a graph: median {statistics.median(ratios):.3f}, "
      f"least {min(ratios):.3f}, most {max(ratios):.3f}, {len(ratios)} points")
PY
