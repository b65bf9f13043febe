"""What the CUDA kernels take, per architecture: registers, spills, stack, static shared memory; needs nvcc, no GPU.

python kernels/benchmarks/cuda_resources.py [80 90 100]     writes results/cuda_resources.csv
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import build_cuda

RESULTS = Path(__file__).parent / "results" / "cuda_resources.csv"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("architectures", nargs="*", default=build_cuda.DEFAULT_ARCHITECTURES)
    try:
        rows = build_cuda.resources(parser.parse_args().architectures)
    except build_cuda.BuildError as error:
        sys.exit(str(error))
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(*row.values())


if __name__ == "__main__":
    main()
