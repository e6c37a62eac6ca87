"""Zip archives of torch.save: their pickle, which is not run here, and where in the file their numbers are."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lowrank_core.models.files.container import invalid_file

__all__ = ["ARCHIVE_MAGIC", "Archive", "open_archive"]

ARCHIVE_MAGIC = b"PK\x03\x04"

_PICKLE, _PROGRAM, _BYTE_ORDER = "data.pkl", "constants.pkl", "byteorder"
# Of a local header: its bytes before the name, and where the lengths of name and extra field are among them.
_HEADER_BYTES, _LENGTHS = 30, 26


class Archive(NamedTuple):
    """The pickle of an archive, and where each record begins with its size; no records where they are big-endian."""

    pickle: bytes
    records: dict[int, int]


def open_archive(path: Path) -> Archive | None:
    """Read the pickle of an archive, which has to expand to no more than its own size; None for a legacy file."""
    with path.open("rb") as file:
        if file.read(len(ARCHIVE_MAGIC)) != ARCHIVE_MAGIC:
            return None
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                # torch.save compresses nothing, so that it can be mapped.
                is_plain = sum(entry.file_size for entry in entries) <= path.stat().st_size
                # As torch finds them, whatever their case.
                names = [entry.filename.rpartition("/")[2].lower() for entry in entries]
                pickles = [entry for entry, name in zip(entries, names, strict=True) if name == _PICKLE]
                orders = [entry for entry, name in zip(entries, names, strict=True) if name == _BYTE_ORDER]
                content = [archive.read(entry) for entry in pickles] if is_plain else []
                is_little = is_plain and all(archive.read(entry) == b"little" for entry in orders)
            records = {_begin(file, entry): entry.file_size for entry in entries} if is_little else {}
        except Exception as error:  # a damaged archive raises whatever its fields run into
            raise invalid_file(path, "PyTorch", error) from error
    if not pickles:
        raise ValueError(
            f"{str(path)!r} is a zip archive that torch.save did not write: unpack it, and give the weights in it"
        )
    if _PROGRAM in names:
        raise ValueError(
            f"{str(path)!r} is a TorchScript archive, which has a program beside its weights: save the model's "
            "state_dict() with safetensors"
        )
    if not is_plain:
        raise invalid_file(path, "PyTorch", "its entries expand to more than the file's own size")
    if len(content) > 1:
        raise invalid_file(path, "PyTorch", f"it has {_PICKLE} twice")
    return Archive(content[0], records)


def _begin(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Return where the bytes of an entry begin, behind its own header."""
    file.seek(entry.header_offset + _LENGTHS)
    name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return entry.header_offset + _HEADER_BYTES + name + extra
