"""The tasks there are. Adding one: a file in `tasks/` with a `TASK`, and its line in `TASKS`."""

from __future__ import annotations

from glomo_dist.runtime.errors import ConfigError, suggest
from glomo_dist.transfer.dataset import Column, Published, Split, Task, TaskData
from glomo_dist.transfer.tasks import (
    cifar10,
    digits,
    docstring,
    imdb,
    mnist,
    mnli,
    race,
    rte,
    sick,
    snli,
    squad,
    sst2,
)

__all__ = ["TASKS", "Column", "Published", "Split", "Task", "TaskData", "get_task"]

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK
    for module in (sst2, imdb, snli, mnli, rte, sick, race, squad, mnist, cifar10, docstring, digits)
}


def get_task(name: str) -> Task:
    """The task called `name`, or a ConfigError with near names and the list."""
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}.{suggest(name, TASKS)}")
    return TASKS[name]
