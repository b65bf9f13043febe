import pytest

from glomo_dist.evaluate.ray_executor import RayExecutor
from glomo_dist.evaluate.ray_start import running_ray


@pytest.fixture
def marks(tmp_path):
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


@pytest.fixture(scope="module")
def local_ray():
    with running_ray(cores=2):
        yield RayExecutor(max_retries=1)
