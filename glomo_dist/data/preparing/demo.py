"""A corpus that every machine with this program has: Python's own documentation, docstrings, scikit-learn's digits.

Source files are parsed, never imported. The same Python and packages give the same bytes.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import inspect
import io
import json
import os
import re
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glomo_dist.runtime import collector, progress
from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.files import new_folder, write_bytes

# Packages this program depends on, directly or not, that document themselves at length: they are always there, so
# the demo does not depend on what else is installed. Also the labels of the task.
PACKAGES = (
    "deepspeed", "fontTools", "matplotlib", "networkx", "numpy", "ray", "scipy", "sklearn", "sympy", "torch",
)  # fmt: skip
TASK_SIZES = {"train": 200, "dev": 50, "test": 50}  # docstrings per label
TASK_CHARACTERS = 600  # of a docstring shown to the task

# Taken from one package at most, so that none drowns the others and an hour of parsing is not needed.
_PACKAGE_DOCSTRINGS = 600
_PACKAGE_SOURCE = 6_000_000  # characters of source
_SHORTEST, _LONGEST = 120, 20_000  # characters: shorter ones say little, longer ones are tables
_LETTERS = 0.65  # least share of letters in prose (English has about 0.8, code and tables less)
_WORDS = 20
# Tests document nothing, and vendored code would carry the name of the package that holds it.
_SKIPPED = re.compile(r"(^|/)(tests?|testing|test_[^/]*|[^/]*_test\.py|idle_test|_?vendor(ed)?|third_?party[^/]*|"
                  r"externals?|extern|site-packages|dist-packages|\.[^/]*)(/|$)")  # fmt: skip
_ALIASES = {
    "matplotlib": ("mpl", "pyplot", "plt"),
    "numpy": ("np", "ndarray"),
    "sklearn": ("scikit-learn", "scikit_learn", "scikits"),
    "torch": ("pytorch",),
    "networkx": ("nx",),
    "fontTools": ("ttx",),
}


class Docstring(NamedTuple):
    """A prose docstring, the top-level package it belongs to and the file (below the library folder)."""

    text: str
    module: str
    file: str


def write_demo_corpus(folder: str | Path, beside: Mapping[str, bytes] | None = None) -> Path:
    """Write into the new folder `folder`, with the files `beside`, and return it:

    text.jsonl        rows {"text", "module"}: for pretraining
    docstrings.jsonl  rows {"text", "label", "split"}: which package is a docstring from? (see `docstring_task_rows`)
    digits.npz        images uint8 [1797, 8, 8], labels int64 [1797]

    Docstrings in the dev and test parts of the task, and variants that open with the same words, are left out of
    text.jsonl.
    """
    with new_folder(folder, beside=beside) as temporary:  # first, as it may be refused
        found = list(progress.bar(docstrings(), desc="collecting documentation", unit=" docstrings"))
        rows = docstring_task_rows(found)
        held_out = {_opening(row["source_text"]) for row in rows if row["split"] != "train"}
        corpus = [{"text": text, "module": "pydoc_data"} for text in topics()]
        corpus += [{"text": d.text, "module": d.module} for d in found if _opening(d.text) not in held_out]
        _write_lines(temporary / "text.jsonl", corpus)
        shown = [{key: row[key] for key in ("text", "label", "split")} for row in rows]
        _write_lines(temporary / "docstrings.jsonl", shown)
        write_bytes(temporary / "digits.npz", _archive(*digits()))
    characters = sum(len(row["text"]) for row in corpus)
    progress.say(
        f"{folder}: {len(corpus):,} texts, {characters:,} characters; {len(rows):,} labelled docstrings"
    )
    return Path(folder)


def topics() -> list[str]:
    """The chapters of the language reference that `help()` shows, in the order of their names, each once."""
    try:
        chapters = importlib.import_module("pydoc_data.topics").topics
    except ModuleNotFoundError:
        return []  # some distributions of Python leave the documentation out
    return list(dict.fromkeys(str(chapters[name]).strip() for name in sorted(chapters)))


def docstrings() -> Iterator[Docstring]:
    """Prose docstrings of the standard library and of `PACKAGES`, each text once, in a stable order."""
    paths = {name: Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib", "platlib")}
    folders = [(paths["stdlib"], paths["stdlib"])]
    folders += [(root, root / p) for root in {paths["purelib"], paths["platlib"]} for p in PACKAGES]
    packages: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for root, folder in folders:
        for name, path in _python_files(root, folder):
            packages[name.split("/")[0].removesuffix(".py")].append((name, path))
    seen: set[str] = set()
    for package in sorted(packages):
        taken = source = 0
        # In the order of a hash: what is taken from a large package is spread over all of it.
        for name, path in sorted(packages[package], key=lambda item: _hash(item[0])):
            for text in _docstrings_of(path):
                prose = _prose(text)
                if prose and prose not in seen:
                    seen.add(prose)
                    taken += 1
                    yield Docstring(prose, package, name)
            with contextlib.suppress(OSError):  # a link to nothing, whose docstrings are none
                source += path.stat().st_size
            if taken >= _PACKAGE_DOCSTRINGS or source >= _PACKAGE_SOURCE:
                break


def _python_files(root: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Sources in `folder`, with their names below `root`."""
    for place, folders, files in os.walk(folder):
        below = Path(place).relative_to(root).as_posix().removeprefix(".")
        prefix = f"{below}/" if below else ""
        folders[:] = [name for name in folders if not _SKIPPED.search(prefix + name)]
        for file in files:
            if file.endswith(".py") and not _SKIPPED.search(prefix + file):
                yield prefix + file, Path(place, file)


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        source = path.read_text(encoding="utf-8")
        if '"""' not in source and "'''" not in source:
            return
        with warnings.catch_warnings(), collector.resting():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return  # a library's template, or a file in another encoding: there are plenty of others
    pending: list[Any] = [tree]
    while pending:
        node = pending.pop()
        text = ast.get_docstring(node, clean=False)
        if text:
            yield text
        pending += [
            child
            for child in reversed(node.body)
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        ]


def _prose(docstring: str) -> str:
    """The docstring without interpreter sessions, or "" if it is not prose of a fit length."""
    lines = inspect.cleandoc(docstring).splitlines()
    text = "\n".join(line.rstrip() for line in lines if not line.lstrip().startswith((">>>", "...")))
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    if not _SHORTEST <= len(text) <= _LONGEST:
        return ""
    visible = "".join(text.split())
    letters = sum(map(str.isalpha, visible))
    return text if letters >= _LETTERS * len(visible) and len(text.split()) >= _WORDS else ""


def docstring_task_rows(found: list[Docstring]) -> list[dict[str, str]]:
    """Rows {"text", "label", "split", "source_text"} of the task "which package is this docstring from?".

    The labels are those of `PACKAGES` with enough docstrings, with the same number of rows each. A file's docstrings
    are all in one part, and no two texts open with the same words. The names of all label packages (and their usual
    short names) are struck out of every text, as with them the task would be trivial; what is left is cut to
    `TASK_CHARACTERS`.
    """
    by_part = {package: _by_split([d for d in found if d.module == package]) for package in PACKAGES}
    # A tenth more than needed: some are left out below, being too short without the names.
    labels = [
        package
        for package in PACKAGES
        if all(len(by_part[package][split]) >= 1.1 * size for split, size in TASK_SIZES.items())
    ]
    if len(labels) < 2:
        raise DataError(
            "the installed packages have too few docstrings for the demo's text task "
            f"(found {len(found)}). Install the packages of constraints.txt, with their sources."
        )
    names = sorted(
        {name for label in labels for name in (label, *_ALIASES.get(label, ()))}, key=len, reverse=True
    )
    name = re.compile(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, names))})(?![^\W_])", re.IGNORECASE)
    rows, seen = [], set()
    for split, size in TASK_SIZES.items():
        for label in labels:
            taken = 0
            for docstring in by_part[label][split]:
                text = " ".join(name.sub(" ", docstring.text).split())
                text = text if len(text) <= TASK_CHARACTERS else text[:TASK_CHARACTERS].rsplit(" ", 1)[0]
                if len(text) < _SHORTEST // 2 or _opening(text) in seen:
                    continue
                seen.add(_opening(text))
                rows.append({"text": text, "label": label, "split": split, "source_text": docstring.text})
                taken += 1
                if taken == size:
                    break
    return rows


def _opening(text: str) -> str:
    """The first hundred characters, as what makes two docstrings variants of each other."""
    return " ".join(text.split())[:100]


def _by_split(found: list[Docstring]) -> dict[str, list[Docstring]]:
    """One package's docstrings in the parts, in the proportion of `TASK_SIZES`, no file in two of them."""
    files: dict[str, list[Docstring]] = defaultdict(list)
    for docstring in found:
        files[docstring.file].append(docstring)
    parts: dict[str, list[Docstring]] = {split: [] for split in TASK_SIZES}
    for file in sorted(files, key=lambda name: _hash("split", name)):
        emptiest = min(parts, key=lambda split: len(parts[split]) / TASK_SIZES[split])
        parts[emptiest] += files[file]
    return {split: sorted(part, key=lambda d: _hash(d.file, d.text)) for split, part in parts.items()}


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits: images uint8 [1797, 8, 8], labels int64 [1797]."""
    from sklearn.datasets import load_digits  # slow, and `glomo prepare` of one's own files needs none

    bundled = load_digits()
    images = np.round(bundled.images * (255 / 16)).astype(np.uint8)  # scikit-learn's pixels are 0..16
    return images, bundled.target.astype(np.int64)


def _archive(images: np.ndarray, labels: np.ndarray) -> bytes:
    archive = io.BytesIO()
    np.savez_compressed(archive, images=images, labels=labels)
    return archive.getvalue()


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_bytes(path, text.encode())
