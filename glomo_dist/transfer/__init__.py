"""Using graphs in a downstream model: tasks, features, the graph mixture, and one function that trains.

readers/   the modules that are trained on a task: mixture of graphs, fusion, readers
datasets/  what a task is, and how the files of published sets become its examples
tasks/     one file per task of the package
features/  what a task model sees of each unit, and a task's examples as arrays of it

Beside them: registry.py finds a task, export.py writes its graphs, finetune.py trains: a job (job.py) to a result.
ancestor.py is the fusion of the paper's authors, from their state dicts; their models are in model/ancestor.py.

Names are imported when they are used, as in `glomo_dist.data`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glomo_dist.runtime import lazy

if TYPE_CHECKING:
    from glomo_dist.transfer.datasets.dataset import Column, Published, Row, Split, Task, TaskData
    from glomo_dist.transfer.datasets.rows import csv_rows, lines, records, table
    from glomo_dist.transfer.datasets.sources import packed, require
    from glomo_dist.transfer.datasets.splits import checked, images_split, text_data
    from glomo_dist.transfer.datasets.values import whole_number
    from glomo_dist.transfer.export import export_task
    from glomo_dist.transfer.finetune import run
    from glomo_dist.transfer.job import FinetuneJob, FinetuneSettings
    from glomo_dist.transfer.predictor import Predictor
    from glomo_dist.transfer.readers.choice import ChoiceReader
    from glomo_dist.transfer.readers.esim import PairReader
    from glomo_dist.transfer.readers.head import Fusion, GraphMixture
    from glomo_dist.transfer.readers.models import PixelReader, Reader, ReaderSizes, TextReader
    from glomo_dist.transfer.readers.resnet import ResNetReader
    from glomo_dist.transfer.readers.sequences import Sequences
    from glomo_dist.transfer.readers.spans import SpanReader
    from glomo_dist.transfer.registry import find_task, get_task
    from glomo_dist.transfer.result import Result

__all__ = [
    "ChoiceReader",
    "Column",
    "FinetuneJob",
    "FinetuneSettings",
    "Fusion",
    "GraphMixture",
    "PairReader",
    "PixelReader",
    "Predictor",
    "Published",
    "Reader",
    "ReaderSizes",
    "ResNetReader",
    "Result",
    "Row",
    "Sequences",
    "SpanReader",
    "Split",
    "Task",
    "TaskData",
    "TextReader",
    "checked",
    "csv_rows",
    "export_task",
    "find_task",
    "get_task",
    "images_split",
    "lines",
    "packed",
    "records",
    "require",
    "run",
    "table",
    "text_data",
    "whole_number",
]

__getattr__ = lazy.names(
    __name__,
    {
        "readers.choice": ("ChoiceReader",),
        "datasets.dataset": (
            "Column",
            "Published",
            "Row",
            "Split",
            "Task",
            "TaskData",
        ),
        "readers.esim": ("PairReader",),
        "export": ("export_task",),
        "finetune": ("run",),
        "readers.head": ("Fusion", "GraphMixture"),
        "job": ("FinetuneJob", "FinetuneSettings"),
        "predictor": ("Predictor",),
        "readers.models": ("PixelReader", "Reader", "ReaderSizes", "TextReader"),
        "readers.resnet": ("ResNetReader",),
        "readers.sequences": ("Sequences",),
        "result": ("Result",),
        "datasets.rows": ("csv_rows", "lines", "records", "table"),
        "datasets.sources": ("packed", "require"),
        "datasets.splits": ("checked", "images_split", "text_data"),
        "readers.spans": ("SpanReader",),
        "registry": ("find_task", "get_task"),
        "datasets.values": ("whole_number",),
    },
)
