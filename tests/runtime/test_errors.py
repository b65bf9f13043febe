"""What errors say."""

import pytest

from glomo_dist.runtime.errors import DataError, GlomoError, lacks_memory
from glomo_dist.runtime.secrets import shown


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("https://me:pass@host/a.txt?token=x, line 3: bad?", "https://host/a.txt, line 3: bad?"),
        ("s3://me:p@ss@host/a@b.txt and c@d", "s3://host/a@b.txt and c@d"),
        ("zip://sst2::https://host/all.zip?sig=a*b", "zip://sst2::https://host/all.zip"),
        ("s3://bucket/part-?.txt does not exist", "s3://bucket/part-?.txt does not exist"),
        ("who? me@home", "who? me@home"),
    ],
)
def test_an_error_does_not_tell_what_is_secret_in_an_address(text, seen):
    assert str(DataError(text)) == str(GlomoError(text)) == shown(text) == seen


def test_whether_memory_was_missing():
    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        OSError(12, "Cannot allocate memory"),
    ):
        assert lacks_memory(error)
    assert not lacks_memory(RuntimeError("The size of tensor a (2) must match the size of tensor b (3)"))
