"""The first bytes of a file, and what is wrong with a path or a file that has no tensors, in its owner's words."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["explain_missing", "hub_id", "read_beginning"]

_BEGINNING_BYTES = 512
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILE_SUFFIXES = (".safetensors", ".json", ".gguf", ".bin", ".pt", ".pth", ".ckpt")
_LFS = b"version https://git-lfs.github.com/spec/"
_TAR_MAGIC, _TAR_OFFSET = b"ustar", 257
_HTML = re.compile(rb"\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)

# How files begin that people give by mistake: what each is, and what to do.
_MISTAKES = (
    (b"\x1f\x8b", "is compressed with gzip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed with Zstandard: unpack it first"),
    (b"BZh", "is compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "is compressed with xz: unpack it first"),
    (b"7z\xbc\xaf", "is a 7-Zip archive: unpack it first"),
    (b"Rar!", "is a RAR archive: unpack it first"),
    (b"\x89HDF\r\n", "is an HDF5 file (Keras): save the model's weights with safetensors"),
    (b"\x93NUMPY", "is a NumPy array without a name: save the weights with safetensors.numpy.save_file"),
)


def read_beginning(path: Path) -> bytes:
    """Return the first bytes of a file that may have tensors; refuse anything that cannot, and say what it is."""
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder, where a file is needed: give one of the files in it")
    if not path.is_file():
        raise explain_missing(path)
    try:
        with path.open("rb") as file:
            beginning = file.read(_BEGINNING_BYTES)
    except PermissionError as error:
        raise PermissionError(f"{str(path)!r} may not be read: its permissions do not allow it to you") from error
    mistake = _mistake(beginning)
    if mistake:
        raise ValueError(f"{str(path)!r} {mistake}")
    return beginning


def explain_missing(path: Path) -> FileNotFoundError:
    """Return the error of a path where nothing is: a link to nothing, an id of the Hugging Face hub, a missing file."""
    if path.is_symlink():
        return FileNotFoundError(f"no file {str(path)!r}: it is a link to nothing, or to itself")
    name = hub_id(path)
    if name is not None:
        return FileNotFoundError(
            f"no file or folder {name!r}; it looks like a Hugging Face id, of which the cache on this machine has no "
            f"copy, and files are read from the disk alone: download it first (hf download {name} --local-dir "
            f"{path.name}) and give the folder"
        )
    return FileNotFoundError(f"no file {str(path)!r}")


def hub_id(path: Path) -> str | None:
    """Return a path that may be the id of a model, as "org/name": nothing has that name here, nor its first part."""
    is_file = path.suffix.lower() in _FILE_SUFFIXES or path.is_symlink() or path.exists() or path.parent.exists()
    return None if is_file or not _HUB_ID.fullmatch(path.as_posix()) else path.as_posix()


def _mistake(beginning: bytes) -> str:
    """Return what a file is that has no tensors, and what to do; nothing where it may have some."""
    if not beginning:
        return "is empty: fetch or save it again"
    if beginning.startswith(_LFS):
        return "is a git LFS pointer, not the file itself: fetch that with git lfs pull"
    if _HTML.match(beginning):
        return "is a web page, probably an error or a login page saved in its place: download the file itself again"
    if beginning[_TAR_OFFSET:].startswith(_TAR_MAGIC):
        return "is a tar archive: unpack it first"
    return next((what for magic, what in _MISTAKES if beginning.startswith(magic)), "")
