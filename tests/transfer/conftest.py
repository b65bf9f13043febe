"""The sample that fine-tuning is tried on."""

import pytest
from transfer_samples import planted_store, write_sst2, write_vectors


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    source = write_sst2(folder / "data")
    return {
        "source": source,
        "vectors": write_vectors(folder / "vectors.npz"),
        "planted": planted_store(folder / "planted", source),
        "empty": planted_store(folder / "empty", source, empty=True),
        "folder": folder,
    }
