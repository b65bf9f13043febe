"""Where the tests of the Triton kernels run: in the interpreter, on CPU tensors, or on a GPU.

The interpreter is chosen by a variable that Triton reads at import, so its tests run in a process of their own, which
`run_interpreted` starts; in the outer process the same tests are those of the GPU. In the interpreter's process
bfloat16 is put right first, and it is made faster (triton_interpreter.py).
"""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from glomo_kernels import triton_device

INTERPRETED = triton_device.interpreted()
DEVICE = "cpu" if INTERPRETED else "cuda"
if INTERPRETED:
    import triton_interpreter

    triton_interpreter.repair()
    triton_interpreter.speed_up()
# Tests of the kernels: in the interpreter's process, or on a GPU. The others run anywhere, without Triton's import.
kernels = pytest.mark.usefixtures("triton_backend") if INTERPRETED else pytest.mark.gpu
anywhere = pytest.mark.skipif(INTERPRETED, reason="runs in the outer process")


def run_interpreted(file: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not gpu", "-p", "no:cacheprovider", file],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def assert_the_same_in_a_cuda_graph(step: Callable[[], list[torch.Tensor]]) -> None:
    """What a captured `step` leaves when it is replayed is, to the bit, what it gave before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = [step() for _ in range(3)][-1]
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for x in results:
        x.detach().fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
