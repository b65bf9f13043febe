"""Many fine-tuning jobs from one description: in this process, on a local Ray or on a cluster.

Names are imported when they are used, as in `glomo_dist.data`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glomo_dist.runtime import lazy

if TYPE_CHECKING:
    from glomo_dist.evaluate.attempt import Job, Outcome
    from glomo_dist.evaluate.executor import Executor, InProcess, Summary, evaluate
    from glomo_dist.evaluate.plan import EvaluationPlan, plan_jobs
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

__getattr__ = lazy.names(
    __name__,
    {
        "attempt": ("Job", "Outcome"),
        "executor": ("Executor", "InProcess", "Summary", "evaluate"),
        "plan": ("EvaluationPlan", "plan_jobs"),
        "plan_file": ("read_plan",),
        "ray_executor": ("RayExecutor",),
        "task_data": ("reader_of", "require_fitting_data"),
    },
)
