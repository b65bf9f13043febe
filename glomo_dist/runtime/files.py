"""Files that are whole or not there: write under a temporary name, flush to disk, rename.

A reader never sees a half-written file or folder, whatever kills the writer.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from glomo_dist.runtime.errors import GlomoError, describe
from glomo_dist.runtime.locks import Lock, take, unguarded
from glomo_dist.runtime.paths import output
from glomo_dist.runtime.progress import say
from glomo_dist.runtime.signals import held

# No room, or none for this user, or not allowed: what a folder may answer in the middle of writing, too.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
ADVICE = "Free space or choose another folder."
LOCK = ".lock"  # in a folder that is written file by file
_MARK = ".writing"  # in a temporary folder, locked by who writes it
COMMAND_FILE = "command.json"  # what made the folder
_LAST = ("config.json", "index.json", COMMAND_FILE)  # by these readers know a folder that is whole


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush everything in `folder`, then the folder itself."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def cannot_write(path: Path, error: OSError, more: str = ADVICE) -> GlomoError:
    """What to raise when `path` could not be written. more: what to do."""
    return GlomoError(f"cannot write {path}: {describe(error)}. {more}")


@contextlib.contextmanager
def writing(path: Path, more: str = ADVICE) -> Iterator[None]:
    """An OSError of the block is `cannot_write` of `path`."""
    try:
        yield
    except OSError as e:
        raise cannot_write(path, e, more) from e


@contextlib.contextmanager
def reading(path: Path, error: type[GlomoError], more: str) -> Iterator[None]:
    """An OSError of the block is `error`: `path` cannot be read. more: what to do."""
    try:
        yield
    except OSError as e:
        raise error(f"{path} cannot be read: {describe(e)}. {more}") from e


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def write_bytes(path: str | Path, content: bytes, more: str = ADVICE) -> None:
    """Replace `path` by `content` in one step; the old content stays until the new one is on disk.

    Raises GlomoError where that fails; more: what to do then.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as e:
        raise cannot_write(path, e, more) from e
    finally:
        with contextlib.suppress(OSError):  # not there any more, or the disk has become read-only
            temporary.unlink()


@contextlib.contextmanager
def new_folder(
    path: str | Path, more: str = ADVICE, beside: Mapping[str, bytes] | None = None
) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends well, and vanishes when it does not.

    An empty folder at `path` (perhaps a mount point, or behind a link) stays, and what was written moves into it: not
    in one step as a new folder gets its name, but with `_LAST` last. What a killed process left under a temporary
    name of `path` is deleted first.

    Raises `GlomoError` if `path` exists and is not an empty folder: nothing of the user's is overwritten; and
    `cannot_write` if the folder cannot be made, or takes no more in the middle of the block (the disk is full). All
    else that the block raises is left as it is.  more: what to do where it cannot be written.  beside: further files,
    by name, which are there when the folder is.
    """
    path = output(path)
    require_absent_or_empty(path)
    target = Path(os.path.realpath(path))
    with writing(path, more):
        target.parent.mkdir(parents=True, exist_ok=True)
        there = target.is_dir()
        above = target if there else target.parent
        _remove_abandoned(above, target.name)
        temporary = _temporary(above / target.name)
    try:
        with writing(path, more):
            temporary.mkdir()
        with _marked(temporary):
            try:
                yield temporary
            except OSError as e:
                _require_mark(temporary, path)
                if _refused(e, temporary):
                    raise cannot_write(path, e, more) from e
                raise
            _require_mark(temporary, path)
            with writing(path, more):
                for name, content in (beside or {}).items():
                    (temporary / name).write_bytes(content)
                # gigabytes, perhaps: of a process that is killed here it is known that it is gone
                sync_tree(temporary)
                with _turn(target) if there else contextlib.nullcontext(), held():
                    require_absent_or_empty(path)
                    _publish(temporary, target, there)
    finally:
        with contextlib.suppress(OSError):  # what failed first is the error to show
            if temporary.exists():
                shutil.rmtree(temporary)


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """One process after the other, where the file system has locks: of two that fill a folder the second finds what
    the first moved there. The lock is of the folder itself, as that of a file in it would be left behind."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            take(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _publish(temporary: Path, target: Path, there: bool) -> None:
    """Give `target` what is in `temporary`, its mark left out. there: the folder stays and is filled."""
    mark = temporary / _MARK
    if there:
        made = [entry for entry in temporary.iterdir() if entry != mark]
        for entry in sorted(made, key=lambda entry: _LAST.index(entry.name) if entry.name in _LAST else -1):
            os.replace(entry, target / entry.name)
    else:
        mark.unlink(missing_ok=True)
        os.replace(temporary, target)
    sync(temporary.parent)


@contextlib.contextmanager
def only_one(folder: Path, doing: str) -> Iterator[None]:
    """Hold a lock on `folder` in the block; the system drops it if the process dies.

    doing: what, as in "another process is exporting into …", the GlomoError where somebody else holds it. A warning
    where the file system has no locks.
    """
    path = folder / LOCK
    with writing(path):
        f = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed below
    with f:
        with writing(path):
            lock = take(f)
        if lock is Lock.BUSY:
            raise GlomoError(
                f"another process is {doing} into {folder}. Wait for it, or choose another folder."
            )
        if lock is Lock.UNSUPPORTED:
            unguarded(folder, f"take care that no other process is {doing} into it.")
        yield


def before_first(folder: Path, first: str) -> set[Path]:
    """What may be all there is in `folder` where a kill or a full disk ended the work before its first file."""
    return {folder / LOCK, *folder.glob(f".{glob.escape(first)}.*.tmp")}


@contextlib.contextmanager
def _marked(folder: Path) -> Iterator[None]:
    """Locked until the block ends, or the process does, however that ends; the mark names the host once it is.

    Where a file system has no locks, or not between hosts, the mark therefore stays empty or names another host.
    """
    with open(folder / _MARK, "wb", buffering=0) as mark:
        with contextlib.suppress(OSError):
            if take(mark) is Lock.HELD:
                mark.write(socket.gethostname().encode())
        yield


def _require_mark(folder: Path, path: Path) -> None:
    """GlomoError where another program has deleted the temporary `folder` of `path`, or some of it, meanwhile."""
    if not (folder / _MARK).exists():
        raise GlomoError(f"cannot write {path}: something deleted it meanwhile. Run the command again.")


def _abandoned(folder: Path) -> bool:
    """Whether it is certain that nobody writes the folder any more."""
    try:
        with open(folder / _MARK, "r+b") as mark:
            return take(mark) is Lock.HELD and mark.read() == socket.gethostname().encode()
    except OSError:
        return False


def _temporary_folders(above: Path, name: str) -> list[Path]:
    pattern = f".{glob.escape(name)}.{'[0-9a-f]' * 8}.tmp"
    return [path for path in sorted(above.glob(pattern)) if path.is_dir()]


def _remove_abandoned(above: Path, name: str) -> None:
    for folder in _temporary_folders(above, name):
        if _abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            say(f"{folder} is left as it is: another command may be writing it. If none is, delete it.")


def _refused(error: OSError, folder: Path) -> bool:
    """Whether it is `folder` that takes no more. Writing to a file that is open names none."""
    named = [n for n in (error.filename, error.filename2) if isinstance(n, (str, bytes, os.PathLike))]
    there = [Path(os.fsdecode(n)).absolute().is_relative_to(folder.absolute()) for n in named]
    return error.errno in _REFUSALS and (any(there) or not named)


def entries(folder: Path) -> set[Path]:
    """What is in a folder, without what ext4 makes at the top of every disk."""
    return {path for path in folder.iterdir() if not (path.name == "lost+found" and path.is_dir())}


def require_absent_or_empty(path: str | Path, first: str = "") -> None:
    """GlomoError if there is anything at `path` but an empty folder, or one with what killed writers left.

    first: of a folder that is written file by file the first file.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    with writing(path):  # even looking may be forbidden
        if target.is_dir():
            left = before_first(target, first) if first else set()
            if entries(target) - {*_temporary_folders(target, target.name)} - left:
                raise GlomoError(
                    f"output folder {path} is not empty. Choose another one, or delete it first."
                )
        elif os.path.lexists(target):
            raise GlomoError(
                f"output {path} exists and is a file; a folder was expected. Choose another name."
            )
        require_folders_above(path)


def require_folders_above(path: Path) -> None:
    """GlomoError if a file stands where `path` needs a folder."""
    for above in path.parents:
        if above.is_file():
            raise GlomoError(f"output {path} lies below {above}, which is a file. Choose another folder.")


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Delete the temporary files and folders `.NAME.tmp` that a killed program left."""
    for leftover in folder.glob(f".{name}.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def sha256_file(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
