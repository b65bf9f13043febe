"""Pages that need nothing else: a template filled, and written whole."""

from __future__ import annotations

import contextlib
import glob
import os
from datetime import datetime, timezone
from pathlib import Path

import jinja2

from glomo_dist.report.figures import with_own_ids
from glomo_dist.report.names import printable
from glomo_dist.runtime.errors import GlomoError
from glomo_dist.runtime.files import remove_leftovers, require_folders_above, write_bytes, writing
from glomo_dist.runtime.fingerprint import code_version


def rendered(template: str, **values: object) -> str:
    """The template of this folder with `values`, when it was made and by which code."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(template).render(made=made, code=code_version(), **values)


def require_file(out: Path, usual: str) -> None:
    """Before anything is read: `out` can be a file. usual: its name, for the message."""
    with writing(out):  # even looking may be forbidden
        if out.is_dir():
            raise GlomoError(
                f"output {out} is a folder; the name of a file was expected, e.g. {out / usual}."
            )
        require_folders_above(out)


def write_page(out: Path, page: str) -> None:
    """To the file `out`, replaced if it is there; a link leads to what is replaced, a pipe or a device is written."""
    content = printable(with_own_ids(page)).encode()
    if out.is_file() or not out.exists():
        target = Path(os.path.realpath(out))
        with contextlib.suppress(OSError):  # as of another user's report
            remove_leftovers(target.parent, f"{glob.escape(target.name)}.{'[0-9a-f]' * 8}")
        write_bytes(target, content)
    else:
        with writing(out):
            out.write_bytes(content)
