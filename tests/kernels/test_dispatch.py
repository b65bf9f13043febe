import importlib
import logging
import os
import subprocess
import sys
import types

import glomo_kernels
import pytest
import torch
from glomo_kernels import cpu_extension, cuda_extension, dispatch


@pytest.mark.parametrize("op", dispatch.TABLE)
def test_every_backend_has_the_functions_of_its_op(op):
    names = ["forward", "backward"] + (["apply_forward", "apply_backward"] if op == "graph_mix" else [])
    for backend in dispatch.TABLE[op]:
        module = dispatch._module(op, backend)
        assert all(callable(getattr(module, name, None)) for name in names), backend
        reason = module.why_not()
        assert reason is None or (backend.name in ("triton", "cuda") and isinstance(reason, str))


def test_the_extension_is_built():
    assert cpu_extension.missing() is None
    assert cpu_extension.loaded().instruction_set() in ("portable", "avx2", "avx512")


@pytest.mark.parametrize("interface", [0, cpu_extension.INTERFACE + 1])
def test_an_extension_of_other_sources_is_not_used(monkeypatch, interface):
    """Neither of older ones nor, in a checkout that went back, of newer ones."""
    monkeypatch.setattr(cpu_extension.loaded(), "interface", interface)
    cpu_extension._load.cache_clear()
    try:
        reason = glomo_kernels.backends("graph_mix")["cpp"]
        assert f"built from other sources (interface {interface}," in reason and "make setup" in reason
        monkeypatch.setenv("GLOMO_KERNELS", "cpp")
        with pytest.raises(glomo_kernels.BackendUnavailable, match="built from other sources"):
            dispatch.pick("graph_mix")
    finally:
        monkeypatch.undo()
        cpu_extension._load.cache_clear()


def test_a_cuda_extension_of_other_sources_is_not_used(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "glomo_kernels._cuda", types.ModuleType("_cuda")
    )  # older ones say nothing
    cuda_extension._load.cache_clear()
    try:
        reason = glomo_kernels.backends("graph_mix")["cuda"]
        assert "_cuda was built from other sources (interface 0" in reason and "build_cuda.py" in reason
    finally:
        monkeypatch.undo()
        cuda_extension._load.cache_clear()


LOOPS = ("portable", "avx2", "avx512")
EVERY_OP = """
import sys, torch
from glomo_kernels import affinity_mix, affinity_graph, cpu_extension, decoder_loss, graph_mix
torch.manual_seed(0)
q, k, v = (torch.randn(2, 2, 150, n).double().requires_grad_() for n in (80, 80, 133))
theta = (torch.randn(2, 2, 150).double() * 20).requires_grad_()  # tiles with few edges and with many
out = affinity_mix(q, k, v, theta)
graph = affinity_graph(q, k, theta, keep=5)
y = graph_mix(graph.detach(), torch.ones(2).double(), v[:, 0]) + graph.weights.sum()
loss = decoder_loss(q.flatten(0, 2), k.flatten(0, 2), torch.arange(600), reduction="sum")
gradients = torch.autograd.grad(out.sin().sum() + y.sin().sum() + loss, [q, k, v, theta])
torch.save([cpu_extension.loaded().instruction_set(), [out, y, loss, *gradients]], sys.argv[1])
"""


def test_loops_for_other_machines(tmp_path):
    """In processes of their own; asked for more than this machine has, they take what it has."""

    def results(**variables):
        command = [sys.executable, "-c", EVERY_OP, tmp_path / "result"]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", **variables})
        return torch.load(tmp_path / "result", weights_only=True)

    best, reference = results(GLOMO_KERNELS="reference")
    for name in LOOPS:
        used, ours = results(GLOMO_KERNELS="cpp", GLOMO_SIMD=name)
        assert used == name or (best == "avx2" and name == "avx512")
        torch.testing.assert_close(
            ours, reference, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_unknown_loops_are_refused_and_an_empty_name_is_none():
    code = "from glomo_kernels import cpu_extension; print(cpu_extension.loaded().instruction_set())"

    def run(name):
        environment = {**os.environ, "GLOMO_SIMD": name}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    names = "portable, avx2, avx_vnni, avx512, avx512_vnni, avx512_bf16, amx"
    assert f"GLOMO_SIMD must be one of {names}, got 'AVX2'." in run("AVX2").stderr
    assert run("").stdout == run("avx512").stdout != ""


@pytest.mark.parametrize("op", dispatch.TABLE)
def test_reference_can_be_forced(op, monkeypatch):
    monkeypatch.setenv("GLOMO_KERNELS", "reference")
    assert dispatch.pick(op).__name__ == f"glomo_kernels.{op}.reference"


@pytest.mark.parametrize("name", ["fast", "CPP", " "])
def test_forced_backend_that_does_not_exist(monkeypatch, name):
    monkeypatch.setenv("GLOMO_KERNELS", name)
    with pytest.raises(
        glomo_kernels.BackendUnavailable, match="graph_mix has no such backend; it has cuda, cpp, ref"
    ):
        glomo_kernels.graph_mix(
            glomo_kernels.SparseGraph(
                torch.zeros(2, dtype=torch.int64),
                torch.zeros(0, dtype=torch.int32),
                torch.zeros(0),
                (1, 1, 1),
            ),
            torch.ones(1),
            torch.ones(1, 1, 1),
        )


def test_forced_backend_that_refuses_says_why(monkeypatch):
    q = torch.randn(1, 1, 3, 2)
    monkeypatch.setenv("GLOMO_KERNELS", "cpp")
    with pytest.raises(glomo_kernels.BackendUnavailable, match="cpp: kind 'softmax' is not implemented in C"):
        glomo_kernels.affinity_graph(q, q, kind="softmax")
    monkeypatch.delenv("GLOMO_KERNELS")
    assert glomo_kernels.affinity_graph(q, q, kind="softmax").shape == (1, 1, 3)


@pytest.mark.parametrize("op", ["affinity_mix", "affinity_graph"])
def test_more_keys_than_the_loops_count_are_refused(op):
    units = 2**24
    module = importlib.import_module(f"glomo_kernels.{op}.cpp")
    q = torch.empty(1, 1, 1, 1)
    assert module.why_not(q, q.expand(1, 1, units - 1, 1)) is None
    assert f"T is {units}" in module.why_not(q, q.expand(1, 1, units, 1))


def test_choice_is_logged_once_with_the_reasons(monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "_logged", set())
    caplog.set_level(logging.INFO, "glomo_kernels")
    q = torch.randn(1, 1, 3, 2)
    for _ in range(2):
        glomo_kernels.affinity_graph(q, q, kind="softmax")
    assert [record.getMessage() for record in caplog.records] == [
        "affinity_graph runs on reference; not cuda: it takes CUDA tensors, these are on cpu; "
        "not cpp: kind 'softmax' is not implemented in C++ (relu, square, topk are)"
    ]
    monkeypatch.setenv("GLOMO_KERNELS", "cpp")
    glomo_kernels.affinity_graph(q, q)
    assert caplog.records[-1].getMessage() == "affinity_graph runs on cpp (GLOMO_KERNELS)"


def test_missing_extension_is_a_reason_not_a_crash(monkeypatch):
    monkeypatch.setattr(cpu_extension, "_load", lambda: "no compiler was found")
    monkeypatch.setattr(cuda_extension, "_load", lambda: "no nvcc was found")
    assert glomo_kernels.backends("graph_mix") == {
        "cuda": "no nvcc was found",
        "cpp": "no compiler was found",
        "reference": None,
    }
    for op in dispatch.TABLE:
        assert glomo_kernels.backends(op)["cpp"] == "no compiler was found"
        assert dispatch.pick(op).__name__ == f"glomo_kernels.{op}.reference"
    monkeypatch.setenv("GLOMO_KERNELS", "cpp")
    with pytest.raises(glomo_kernels.BackendUnavailable, match="cpp: no compiler was found"):
        dispatch.pick("graph_mix")
    monkeypatch.delenv("GLOMO_KERNELS")
    monkeypatch.setitem(dispatch.TABLE, "graph_mix", (dispatch.CUDA, dispatch.CPP))
    reasons = "graph_mix cannot run here: cuda: no nvcc was found; cpp: no compiler was found"
    with pytest.raises(glomo_kernels.BackendUnavailable, match=f"^{reasons}$"):
        dispatch.pick("graph_mix")


def test_unknown_op():
    with pytest.raises(ValueError, match="unknown op 'mix'; known: affinity_mix"):
        glomo_kernels.backends("mix")


def test_import_is_lean():
    """A fresh process: no compiled code, Triton, CUDA or compiler at import, and nothing of the project."""
    code = """
import sys, torch
before = set(sys.modules)
import glomo_kernels
new = set(sys.modules) - before
heavy = [name for name in new if name.split(".")[0] in ("triton", "glomo_dist", "pybind11")]
assert not heavy, heavy
assert "glomo_kernels._cpu" not in sys.modules and "glomo_kernels._cuda" not in sys.modules
assert "torch._dynamo" not in new and "torch._inductor" not in new
assert not torch.cuda.is_initialized()
assert all(name.split(".")[0] in ("glomo_kernels", "torch") for name in new), sorted(new)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
