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

# Words
step glomo prepare text "$out/raw/text.jsonl" --out "$out/shards/text" --vocab-size 8000
step glomo pretrain "$out/shards/text" --out "$out/runs/text" --recipe demo_text --ranks 2
step glomo export "$out/runs/text" --task docstring --source "$out/raw" --out "$out/graphs/docstring-pretrained"
step glomo export "$out/runs/text" --task docstring --source "$out/raw" --out "$out/graphs/docstring-random" --random-seed 0

# Pixels
step glomo prepare images "$out/raw/digits.npz" --out "$out/shards/digits" --bits 3
step glomo pretrain "$out/shards/digits" --out "$out/runs/digits" --recipe demo_digits --ranks 2
step glomo export "$out/runs/digits" --task digits --source "$out/raw" --out "$out/graphs/digits-pretrained"
step glomo export "$out/runs/digits" --task digits --source "$out/raw" --out "$out/graphs/digits-random" --random-seed 0

# 2 tasks x 4 arms x 3 seeds, on a local Ray
step glomo evaluate --tasks docstring digits --sources docstring="$out/raw" digits="$out/raw" \
  --arms none uniform "random=$out/graphs/{task}-random" "pretrained=$out/graphs/{task}-pretrained" \
  --seeds 0 1 2 --features learned:32 --epochs 6 --out "$out/results"

step glomo report "$out/results" --runs "$out/runs/text" "$out/runs/digits" --out "$out/report.html"
printf '\n==> done in %d:%02d; open %s\n' $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)) "$(cd "$out" && pwd)/report.html"
