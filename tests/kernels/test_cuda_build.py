"""The CUDA sources compile for all architectures, wherever nvcc is, and take no more of a GPU than they should."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels"))
import build_cuda

needs_nvcc = pytest.mark.skipif(build_cuda.nvcc() is None, reason="nvcc is not here")
# Blocks have 256 threads and a multiprocessor 65,536 registers: 2 blocks, or 4.
LIMITS = {
    "count_kernel": 128, "fill_kernel": 128, "roots_kernel": 128, "select_kernel": 128,
    "slopes_kernel": 64, "combine_kernel": 64, "weights_kernel": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    return build_cuda.resources(build_cuda.DEFAULT_ARCHITECTURES)


@needs_nvcc
def test_every_kernel_is_there_on_every_architecture(rows):
    for arch in build_cuda.DEFAULT_ARCHITECTURES:
        here = [row for row in rows if row["arch"] == f"sm_{arch}"]
        assert {row["kernel"] for row in here} == set(LIMITS)
        for kernel in LIMITS:
            types = {row["type"] for row in here if row["kernel"] == kernel}
            assert types >= {"float32", "float64"}
            assert kernel == "slopes_kernel" or types == {"float32", "float64", "float16", "bfloat16"}


@needs_nvcc
def test_nothing_is_spilled_and_registers_keep_to_their_limits(rows):
    for row in rows:
        assert row["spill_store_bytes"] == row["spill_load_bytes"] == row["stack_bytes"] == 0, row
        assert row["registers"] <= LIMITS[row["kernel"]], row
        assert row["static_shared_bytes"] == 0, row  # given at launch; static_assert in the sources


@needs_nvcc
@pytest.mark.parametrize("value", ["75", "90;sm_80", "x"])
def test_wrong_architectures_are_named(monkeypatch, value):
    monkeypatch.setenv("GLOMO_CUDA_ARCH", value)
    with pytest.raises(build_cuda.BuildError, match=r"GLOMO_CUDA_ARCH: .* is none of"):
        build_cuda.architectures(build_cuda.nvcc())


@needs_nvcc
def test_architectures_that_are_named_are_taken(monkeypatch):
    monkeypatch.setenv("GLOMO_CUDA_ARCH", "80; 90a")
    assert build_cuda.architectures(build_cuda.nvcc()) == ["80", "90a"]


@pytest.fixture
def gpus(monkeypatch):
    """Sets what nvidia-smi says of the GPUs here."""
    monkeypatch.delenv("GLOMO_CUDA_ARCH", raising=False)
    monkeypatch.setattr(build_cuda.shutil, "which", lambda name: name)
    return lambda said: monkeypatch.setattr(build_cuda, "_output", lambda *command: said)


def test_architectures_of_the_gpus_here_but_for_old_ones(gpus):
    gpus("12.0\n7.5\n9.0\n9.0\n")
    assert build_cuda.architectures("nvcc") == ["90", "120"]


def test_old_gpus_are_not_taken_for_a_wrong_variable(gpus):
    gpus("7.5\n7.0\n")
    with pytest.raises(
        build_cuda.BuildError, match=r"^the GPUs here have architecture 70, 75, the kernels need 80;"
    ):
        build_cuda.architectures("nvcc")


def test_it_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("GLOMO_CUDA", "0")
    assert not build_cuda.wanted()


def test_a_failure_is_loud_and_no_exception(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(build_cuda, "nvcc", lambda: None)
    monkeypatch.delenv("GLOMO_CUDA_ARCH", raising=False)
    build_cuda.build_or_warn(tmp_path / "_cuda.so")
    assert "CUDA kernels were NOT built; the CPU part is" in capsys.readouterr().err
    monkeypatch.setenv("GLOMO_CUDA_ARCH", "90")  # then it was asked for, and pip shows no warning
    with pytest.raises(build_cuda.BuildError, match="nvcc was not found"):
        build_cuda.build_or_warn(tmp_path / "_cuda.so")
