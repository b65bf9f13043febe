import logging

import glomo_kernels
import pytest
import torch
from glomo_kernels import dispatch


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """A clean choice of backends, fixed random numbers and the usual number of threads for every test."""
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    torch.manual_seed(0)
    torch._dynamo.reset()
    logging.getLogger("glomo_kernels").setLevel(logging.WARNING)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def nan_memory():
    """Fresh memory holds NaN (integers: the largest), so that an element that is never written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def pytest_generate_tests(metafunc):
    """A test module that sets OP and has a `backend` argument runs once for each CPU backend of that op.

    Triton and CUDA are no such backends: test_affinity_mix_triton*.py take the one to its interpreter and to a GPU,
    test_cuda.py the other to an emulator and to a GPU.
    """
    own = any("backend" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "backend" in metafunc.fixturenames and not own:
        names = [n for n in glomo_kernels.backends(metafunc.module.OP) if n not in ("triton", "cuda")]
        metafunc.parametrize("backend", names, indirect=True)


def pytest_collection_modifyitems(config, items):
    """Leaves out what a module's REFUSED names: pairs of a backend and a case that it is not made for."""
    for item in list(items):
        params = getattr(getattr(item, "callspec", None), "params", {})
        if (params.get("backend"), params.get("case")) in getattr(item.module, "REFUSED", ()):
            items.remove(item)
            config.hook.pytest_deselected(items=[item])


@pytest.fixture
def triton_backend(request, monkeypatch, nan_memory):
    """Triton, in fresh memory full of NaN; the cases of the module's `plain` go to the device and back."""
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    monkeypatch.setattr(request.module.plain, request.module.plain.OP, request.module.on_device)


@pytest.fixture(autouse=True)
def triton_on_a_gpu(request):
    if request.node.get_closest_marker("gpu") and hasattr(request.module, "on_device"):
        request.getfixturevalue("triton_backend")


@pytest.fixture
def backend(request, monkeypatch):
    """Forces the backend: one that cannot run here fails its tests instead of leaving them out."""
    monkeypatch.setenv(dispatch.VARIABLE, request.param)
    return request.param
