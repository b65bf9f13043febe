"""Jobs that ask for a GPU, on a Ray that is told of one: what it looks for itself is no matter of ours."""

import functools

import evaluate_jobs
from evaluate_jobs import job, read

from glomo_dist.evaluate.executor import evaluate
from glomo_dist.evaluate.ray_executor import RayExecutor


def test_a_gpu_is_shared_by_the_jobs_that_ask_for_a_part_of_it(tmp_path, marks, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "init", functools.partial(ray.init, num_gpus=1))
    jobs = [job("double", marks, value, gpus=gpus) for value, gpus in enumerate((0.5, 1, 0))]
    assert evaluate(jobs, evaluate_jobs.run, tmp_path / "out", RayExecutor(cores=2)).finished == 3
    seen = [read(tmp_path / "out", one.id)["gpus"] for one in jobs]
    assert seen[:2] == ["0", "0"] and not seen[2]
    assert read(tmp_path / "out", jobs[0].id, "job")["gpus"] == 0.5


def test_a_worker_has_one_job_on_a_gpu(tmp_path, marks, monkeypatch):
    """CUDA would stay on the GPU that the process saw first, and keep memory there."""
    import ray

    monkeypatch.setattr(ray, "init", functools.partial(ray.init, num_gpus=2))
    jobs = [job("double", marks, value, gpus=gpus) for value, gpus in enumerate((1, 1, 0.5, 0.5, 1))]
    assert evaluate(jobs, evaluate_jobs.run, tmp_path / "out", RayExecutor(cores=2)).finished == len(jobs)
    assert len({read(tmp_path / "out", one.id)["pid"] for one in jobs}) == len(jobs)
