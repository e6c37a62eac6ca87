"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_README = "README.md"
# Of Linux: linux/fs.h and fcntl.h.
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def check_replaceable(path: Path, own: Iterable[str] | None, *, force: bool) -> None:
    """Check that an output can be written, and may be where something exists already.

    `own` names the files of a folder that is to be written, None stands for a single file. A folder with other files
    in it is never replaced, nor a folder by a file or a file by a folder.
    """
    # Not Path.resolve, which raises RuntimeError for a link to itself before Python 3.13.
    final = Path(os.path.realpath(path))
    if not final.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} to write {path.name!r} into: make it first")
    if not os.access(final.parent, os.W_OK):
        raise PermissionError(f"the folder {str(path.parent)!r} may not be written to: choose another")
    if final.is_symlink():
        raise FileExistsError(f"{str(path)!r} is a link that leads to itself: remove it, or choose another name")
    if not final.exists():
        return
    if final.is_dir() != (own is not None):
        what, wanted = ("folder", "file") if final.is_dir() else ("file", "folder")
        raise FileExistsError(f"{str(path)!r} is a {what}, where a {wanted} is to be written: choose another name")
    others = sorted(file.name for file in final.iterdir() if file.name not in {*own, _README}) if own else []
    if others:
        raise FileExistsError(
            f"{str(path)!r} has other files than are written ({', '.join(others[:3])}), which would be lost: give "
            "the name of a new folder"
        )
    if not force:
        raise FileExistsError(f"{str(path)!r} exists already: --force (force=True) replaces it, or choose another name")


@contextmanager
def replacing(path: Path, *, folder: bool) -> Iterator[Path]:
    """Yield a hidden path beside `path`, which is renamed to `path` on success and removed on failure.

    A new folder is made here, and takes over the README.md of the one that it replaces. A killed process leaves the old
    output whole. Files are replaced in one step, and so are folders on Linux; elsewhere the old folder is renamed
    before the new one is, and a process killed in between leaves it under a hidden name.
    """
    final = Path(os.path.realpath(path))
    temporary = final.with_name(f".{final.name}.{os.getpid()}.part")
    _remove(temporary)
    try:
        if folder:
            temporary.mkdir()
        yield temporary
        if folder and final.exists():
            if (final / _README).is_file():
                shutil.copy2(final / _README, temporary / _README)
            _swap(temporary, final)
        else:
            temporary.replace(final)
    finally:
        _remove(temporary)


def _swap(new: Path, old: Path) -> None:
    """Exchange two folders; `new` is then the one that was replaced."""
    if _exchange(new, old):
        return
    aside = new.with_name(new.name.removesuffix(".part") + ".old")
    old.replace(aside)
    try:
        new.replace(old)
    except OSError:
        aside.replace(old)
        raise
    shutil.rmtree(aside)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step, where the system can: Linux, on most of its file systems."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    status = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return int(status) == 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
