"""Names that packages offer and import when they are used."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import glomo_dist
from glomo_dist.runtime import lazy


def test_the_parts_are_listed_and_none_is_imported() -> None:
    code = (
        "import sys, glomo_dist\n"
        "print(*dir(glomo_dist))\n"
        "bad = [m for m in sys.modules if m == 'torch' or m.startswith('glomo_dist.') and 'runtime' not in m]\n"
        "assert not bad, bad\n"
        "print(glomo_dist.recipes.get('tiny').steps, glomo_dist.transfer.job.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parts, found = done.stdout.splitlines()
    assert {"data", "evaluate", "graphs", "model", "pretrain", "recipes", "report", "transfer"} < {
        *parts.split()
    }
    assert found == "4 glomo_dist.transfer.job"


@pytest.mark.parametrize("package", ["data", "evaluate", "graphs", "model", "pretrain", "report", "transfer"])
def test_all_that_is_offered_is_there(package: str) -> None:
    module = importlib.import_module(f"glomo_dist.{package}")
    assert module.__all__ and all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match=f"'glomo_dist.{package}' has no attribute 'nothing'"):
        _ = module.nothing


def test_a_name_is_taken_before_a_module() -> None:
    get = lazy.names("glomo_dist.runtime", {"errors": ("suggest",), "suggest": (), "files": ()})
    assert get("suggest")("a", ["b"]) == " Known: b."
    assert get("files").__name__ == "glomo_dist.runtime.files"
    assert glomo_dist.__version__
