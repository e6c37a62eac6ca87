"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_README = "README.md"
# Of Linux: linux/fs.h and fcntl.h.
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
# EDQUOT is missing on Windows.
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def check_replaceable(path: Path, own: Iterable[str] | None, *, force: bool) -> None:
    """Check that an output can be written, and may be where something exists already.

    `own` names the files of a folder that is to be written, None stands for a single file. A folder with other files
    in it is never replaced, nor a folder by a file or a file by a folder.
    """
    # Not Path.resolve, which raises RuntimeError for a link to itself before Python 3.13.
    final = Path(os.path.realpath(path))
    if not final.parent.is_dir():
        raise FileNotFoundError(f"the folder {str(path.parent)!r} for {path.name!r} does not exist: make it first")
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
def replacing(path: Path, *, folder: bool, size: int = 0) -> Iterator[Path]:
    """Yield a hidden path beside `path`, which is renamed to `path` on success and removed on failure.

    A new folder is made here, and takes over the README.md of the one that it replaces. A killed process leaves the old
    output whole. Files are replaced in one step, and so are folders on Linux; elsewhere the old folder is renamed
    before the new one is, and a process killed in between leaves it under a hidden name. The hidden paths of killed
    processes are removed first. `size` is how many bytes the output takes, where that is known.
    """
    final = Path(os.path.realpath(path))
    _remove_leftovers(final)
    temporary = final.with_name(f"{_hidden_prefix(final)}-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with explaining_full_disk(path, temporary, size):
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


class FullDiskError(OSError):
    """A file that does not fit: its name, and how many bytes it has with what could not be written."""

    def __init__(self, error: OSError, path: Path, needed: int) -> None:
        super().__init__(error.errno, error.strerror, str(path))
        self.needed = needed


@contextmanager
def naming_full_disk(path: Path, needed: int) -> Iterator[None]:
    """Yield, and say in an OSError of a full disk which file was written, and the bytes that it `needed` by then."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise FullDiskError(error, path, needed) from None


@contextmanager
def explaining_full_disk(path: Path, written: Path, size: int = 0) -> Iterator[None]:
    """Yield, and name `path` in an OSError that says a disk or quota is full, with the size of what was `written`.

    `size` is that of the whole output, where it is known.
    """
    try:
        yield
    except OSError as error:
        # Of several outputs at once each names its own, and the innermost what names none.
        if error.errno not in _FULL or isinstance(error.__cause__, OSError) or not _is_of(error, written):
            raise
        sizes = f"{_size(written):,} bytes of it were written"
        if size:
            sizes += f", of up to {size:,} that it needs"
        elif isinstance(error, FullDiskError):
            sizes += f", of at least {error.needed:,} that it needs"
        # What is free says nothing of a quota, nor of the largest file of a file system.
        if error.errno == errno.ENOSPC:
            sizes += f", and {shutil.disk_usage(written.parent).free:,} bytes are free there"
        message = f"{error.strerror}, for {str(path)!r}: {sizes}; make space, or write to another disk"
        raise OSError(error.errno, message) from error


def _is_of(error: OSError, written: Path) -> bool:
    """Whether an error names a file in what was written, or none at all."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    # One that is padded in place of a single file has that one's name before its own.
    return not names or any(name.startswith(str(written)) for name in names)


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _hidden_prefix(final: Path) -> str:
    """Return what the hidden names for an output begin with on this machine.

    Process IDs are those of one machine or container, and a folder may be shared by several.
    """
    return f".{final.name}.{zlib.crc32(platform.node().encode()):08x}"


def _remove_leftovers(final: Path) -> None:
    """Remove the hidden paths for an output whose process, of this machine, has ended.

    Where another process has the ID by now, they remain until it has ended too: nothing that may be under way is lost.
    """
    hidden = re.compile(rf"{re.escape(_hidden_prefix(final))}-(\d+)-[0-9a-f]{{8}}\.part(\.padded)?")
    for path in final.parent.iterdir():
        match = hidden.fullmatch(path.name)
        if match and not _may_run(int(match[1])):
            # Those of another user may not be removable.
            with suppress(OSError):
                _remove(path)


def _may_run(process: int) -> bool:
    """Whether a process of this ID may exist; True on Windows, where os.kill with signal 0 sends Ctrl-C."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


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
