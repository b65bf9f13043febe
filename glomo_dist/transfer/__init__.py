"""Using graphs in a downstream model: tasks, features, the graph mixture, and one function that trains.

Names are imported when they are used, as in `glomo_dist.data`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glomo_dist.runtime import lazy

if TYPE_CHECKING:
    from glomo_dist.transfer.choice import ChoiceReader
    from glomo_dist.transfer.dataset import (
        Column,
        Published,
        Row,
        Split,
        Task,
        TaskData,
        checked,
        images_split,
        text_data,
    )
    from glomo_dist.transfer.esim import PairReader
    from glomo_dist.transfer.export import export_task
    from glomo_dist.transfer.finetune import run
    from glomo_dist.transfer.head import Fusion, GraphMixture
    from glomo_dist.transfer.job import FinetuneJob, FinetuneSettings
    from glomo_dist.transfer.models import PixelReader, Reader, ReaderSizes, Sequences, TextReader
    from glomo_dist.transfer.resnet import ResNetReader
    from glomo_dist.transfer.result import Result
    from glomo_dist.transfer.rows import csv_rows, lines, records, table
    from glomo_dist.transfer.sources import packed, require
    from glomo_dist.transfer.spans import SpanReader
    from glomo_dist.transfer.task import find_task, get_task
    from glomo_dist.transfer.values import whole_number

__all__ = [
    "ChoiceReader",
    "Column",
    "FinetuneJob",
    "FinetuneSettings",
    "Fusion",
    "GraphMixture",
    "PairReader",
    "PixelReader",
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
        "choice": ("ChoiceReader",),
        "dataset": (
            "Column",
            "Published",
            "Row",
            "Split",
            "Task",
            "TaskData",
            "checked",
            "images_split",
            "text_data",
        ),
        "esim": ("PairReader",),
        "export": ("export_task",),
        "finetune": ("run",),
        "head": ("Fusion", "GraphMixture"),
        "job": ("FinetuneJob", "FinetuneSettings"),
        "models": ("PixelReader", "Reader", "ReaderSizes", "Sequences", "TextReader"),
        "resnet": ("ResNetReader",),
        "result": ("Result",),
        "rows": ("csv_rows", "lines", "records", "table"),
        "sources": ("packed", "require"),
        "spans": ("SpanReader",),
        "task": ("find_task", "get_task"),
        "values": ("whole_number",),
    },
)
