"""A package that is missing is told by name, before anything else is done."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glomo_dist.data import prepare_images, prepare_text
from glomo_dist.evaluate import RayExecutor
from glomo_dist.runtime.errors import ConfigError
from glomo_dist.transfer.features.encoder_files import locate


@pytest.mark.parametrize(
    ("package", "use", "says"),
    [
        ("ray", lambda here: RayExecutor(), r"pip install 'ray\[default\]'\. `--executor process` runs"),
        (
            "webdataset",
            lambda here: prepare_text(["missing.txt"], here / "out"),
            r"pip install webdataset\.$",
        ),
        ("webdataset", lambda here: prepare_images(["missing"], here / "out"), r"pip install webdataset\.$"),
        ("transformers", lambda here: locate("an/encoder"), r"pip install 'glomo-dist\[hf\]'\.$"),
    ],
    ids=["ray", "text", "images", "transformers"],
)
def test_a_missing_package_is_named(
    package: str, use: Callable[[Path], object], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(ConfigError, match=rf"the package {package} is not installed\. Install it: {says}"):
        use(tmp_path)
    assert not list(tmp_path.iterdir())
