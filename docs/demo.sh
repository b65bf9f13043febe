#!/usr/bin/env bash
# The whole road on data that every machine has, top to bottom: `make demo`, or `bash docs/demo.sh FOLDER`.
# Words: which package is a docstring from?  Pixels: which digit is it?
set -euo pipefail

out=${1:-demo}
mark="$out/.made-by-demo"
if [ -e "$out" ] && [ ! -e "$mark" ]; then
  echo "demo: $out exists and was not made by this script. Move it away, or name another folder." >&2
  exit 2
fi
rm -rf "$out" && mkdir -p "$out" && touch "$mark"

began=$SECONDS
step() { printf '\n==> %d:%02d  %s\n' $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)) "$*"; "$@"; }

# Raw files: text.jsonl, docstrings.jsonl (with labels), digits.npz
step glomo prepare demo --out "$out/raw"

# Words; texts are cut at 48 words, in the graphs and in the task
step glomo prepare text "$out/raw/text.jsonl" --out "$out/shards/text" --vocab-size 8000
step glomo pretrain "$out/shards/text" --out "$out/runs/text" --recipe demo --ranks 2
words=(--task docstring --source "$out/raw" --max-units 48)
step glomo export "$out/runs/text" "${words[@]}" --out "$out/graphs/docstring-pretrained"
step glomo export "$out/runs/text" "${words[@]}" --out "$out/graphs/docstring-random" --random-seed 0

# Pixels
step glomo prepare images "$out/raw/digits.npz" --out "$out/shards/digits" --bits 3
step glomo pretrain "$out/shards/digits" --out "$out/runs/digits" --recipe demo --ranks 2
pixels=(--task digits --source "$out/raw")
step glomo export "$out/runs/digits" "${pixels[@]}" --out "$out/graphs/digits-pretrained"
step glomo export "$out/runs/digits" "${pixels[@]}" --out "$out/graphs/digits-random" --random-seed 0

# 4 arms x 3 seeds for each task, on a local Ray
arms=(none uniform "random=$out/graphs/{task}-random" "pretrained=$out/graphs/{task}-pretrained")
step glomo evaluate --tasks docstring --sources docstring="$out/raw" --arms "${arms[@]}" --seeds 0 1 2 \
  --features learned:32 --max-units 48 --epochs 5 --out "$out/results/docstring"
step glomo evaluate --tasks digits --sources digits="$out/raw" --arms "${arms[@]}" --seeds 0 1 2 \
  --epochs 8 --out "$out/results/digits"

step glomo report "$out"/results/* --runs "$out/runs/text" "$out/runs/digits" --out "$out/report.html"
printf '\n==> done in %d:%02d; open %s\n' $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)) "$(cd "$out" && pwd)/report.html"
