"""The tasks there are: those of the package (a file in `tasks/`, its name in `NAMES` there), and those of a file."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, wraps
from typing import Any

from glomo_dist.runtime.errors import ConfigError, DataError, GlomoError, describe, suggest
from glomo_dist.runtime.fingerprint import fingerprint
from glomo_dist.transfer.datasets.checks import require_columns, require_splits
from glomo_dist.transfer.datasets.dataset import Task, TaskData
from glomo_dist.transfer.tasks import NAMES

TASKS: dict[str, Task] = {
    name: importlib.import_module(f"glomo_dist.transfer.tasks.{name}").TASK for name in NAMES
}


def get_task(name: str, file: str | None = None) -> Task:
    """The task called `name`, of the package or of `file`, whose code is run.

    Raises ConfigError: for an unknown name with near ones and the list, for a file without such a task.
    """
    if file is not None:
        task = _task_of(_absolute(file))
        if task.name != name:
            raise ConfigError(f"{file} has the task {task.name!r}; {name!r} was asked for.")
        return task
    if name not in TASKS:
        raise _unknown(name, "One of a file has its name as task and the file as task_file.")
    return TASKS[name]


def find_task(text: str | os.PathLike[str]) -> tuple[Task, str | None]:
    """The task that a person calls `text`, a name or the path of a .py file, and the file's absolute path."""
    if not isinstance(text, (str, os.PathLike)):
        raise ConfigError(
            f"a task is given by its name or the path of its .py file, got {type(text).__name__}."
        )
    text = os.fspath(text)
    if text.endswith(".py"):
        file = _absolute(text)
        return _task_of(file), file
    if text not in TASKS:
        raise _unknown(text, "Give one of your own as the path of its file, PATH.py.")
    return TASKS[text], None


def chosen_tasks(texts: Iterable[str | os.PathLike[str]]) -> dict[str, str | None]:
    """Name -> file (None: of the package) of the tasks, each called as in `find_task`."""
    found: dict[str, str | None] = {}
    for text in texts:
        task, file = find_task(text)
        if task.name in found:
            raise ConfigError(
                f"{found[task.name]} and {file} both have a task {task.name!r}. Give one of them another name."
                if found[task.name] != file
                else f"the task {task.name!r} is named twice."
            )
        found[task.name] = file
    return found


def file_content(file: str | None) -> str | None:
    """A fingerprint of a task's file as it is now: its columns, model and measure have no other. None without one."""
    if file is None:
        return None
    with open(_absolute(file), "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()[:16]


def _absolute(file: str) -> str:
    """As Python names it in a traceback; workers may run in another folder."""
    return os.path.abspath(os.path.expanduser(file))


def _unknown(name: str, own: str) -> ConfigError:
    return ConfigError(f"unknown task {name!r}.{suggest(name, TASKS)} {own}")


def _task_of(file: str) -> Task:
    try:
        changed = os.stat(file).st_mtime_ns
    except (OSError, ValueError) as e:  # ValueError: a NUL character
        raise ConfigError(
            f"task {file}: {describe(e)}. What ends in .py is the path of a task's file."
        ) from None
    return _loaded(file, changed)


@cache
def _loaded(file: str, changed: int) -> Task:
    """The `TASK` of the file.  changed: its time: a file is run once in a process, and again when it has changed."""
    # A name that no other module has; dataclasses and pickle look their module up by it.
    name = f"glomo_task_{fingerprint(file)}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"task {file}: Python cannot load it.")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:  # the file is somebody's own code
        del sys.modules[name]
        if isinstance(e, GlomoError):
            raise ConfigError(f"task {file}: {e}") from e
        raise ConfigError(f"task {file} cannot be loaded: {_line_of(e, file)}{describe(e)}.") from e
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise ConfigError(f"task {file}: has no TASK, a glomo_dist.transfer.Task (docs/transfer.md).")
    if task.name in TASKS:
        raise ConfigError(f"task {file}: {task.name!r} is the name of a task of the package. Choose another.")
    if not re.fullmatch(r"[\w-]+", task.name):
        raise ConfigError(
            f"task {file}: the name {task.name!r} stands in names of files: letters, digits, - and _ only."
        )
    return replace(task, load=_named(task.name, task.load, file))


def _named(name: str, load: Callable[..., TaskData], file: str) -> Callable[..., TaskData]:
    """`load`, with the file and line in its errors: one task's own code ends no evaluation with a traceback."""

    @wraps(load)
    def loaded(source: str | None, max_examples: int | None = None) -> TaskData:
        try:
            data: Any = load(source, max_examples)
        except GlomoError:
            raise
        except (Exception, SystemExit) as e:
            raise DataError(f"task {file}: {_line_of(e, file)}{describe(e)}.") from e
        if not isinstance(data, TaskData):
            raise DataError(f"task {file}: `load` must return TaskData, got {data!r:.80}.")
        require_splits(name, data.splits)  # it may have been made without `checked`
        require_columns(name, data.splits)
        return data

    return loaded


def _line_of(error: BaseException, file: str) -> str:
    """ "line n: ", the last one of the file that was run; a syntax error says its own."""
    found, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            found = f"line {trace.tb_lineno}: "
        trace = trace.tb_next
    return found
