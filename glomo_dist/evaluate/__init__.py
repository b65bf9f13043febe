"""Many fine-tuning jobs from one description: in this process, on a local Ray or on a cluster."""

from glomo_dist.evaluate.attempt import Job, Outcome
from glomo_dist.evaluate.executor import Executor, InProcess, Summary, evaluate
from glomo_dist.evaluate.job import EvaluationPlan, plan_jobs
from glomo_dist.evaluate.plan_file import read_plan
from glomo_dist.evaluate.ray_executor import RayExecutor
from glomo_dist.evaluate.task_data import reader_of, require_fitting_data

__all__ = [
    "EvaluationPlan",
    "Executor",
    "InProcess",
    "Job",
    "Outcome",
    "RayExecutor",
    "Summary",
    "evaluate",
    "plan_jobs",
    "read_plan",
    "reader_of",
    "require_fitting_data",
]
