"""NumPy's .npz files, among them the dense ViT checkpoints of Big Vision and AugReg.

bfloat16 is stored as NumPy does, as two raw bytes an entry (V2), and read back as bfloat16.
"""

from __future__ import annotations

import os
import struct
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vmoe.errors import UserError
from vmoe.weights.leaf import (
    DTYPES,
    MAX_GROWTH,
    MAX_SMALL,
    Leaf,
    Leaves,
    check_paths,
    malformed,
    shape_of,
    unreadable,
)
from vmoe.weights.whole import written_whole

NPY = ".npy"
BFLOAT16 = DTYPES["bfloat16"]
RAW = np.dtype("V2")
END = struct.Struct("<4s4H2LH")
"""The end record of a zip archive without a comment, as NumPy writes it."""
MANY = 0xFFFF
"""What it says where there are too many members for it."""


def read(file: Path) -> Leaves:
    """The arrays of a file; only their headers are read until they are asked for.

    Raises:
      UserError: if it cannot be read or is malformed, naming it and what is wrong.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_count(file, len(members))
            most = max(MAX_GROWTH * file.stat().st_size, MAX_SMALL)
            if sum(member.file_size for member in members) > most:
                raise malformed(file, f"it would unpack to more than {most} bytes")
            leaves = {_path(m, file): _leaf(archive, m, file) for m in members}
    except OSError as error:
        raise unreadable(file, error) from None
    except Exception as error:  # a dozen kinds, from zipfile, zlib, ast, tokenize and NumPy
        raise _damaged(file, error) from None
    if len(leaves) < len(members):
        raise malformed(file, "an array is there twice")
    check_paths(leaves, file)
    return leaves


def write(file: Path, leaves: Leaves) -> None:
    """Writes arrays to a file, uncompressed, as numpy.savez does; its zip names are their paths.

    Raises:
      UserError: if the file cannot be written, or is there already.
    """
    with written_whole(file) as (unfinished,), zipfile.ZipFile(unfinished, "w") as archive:
        for path, leaf in leaves.items():
            array = leaf.read()
            if array.dtype == BFLOAT16:
                array = array.view(RAW)
            with archive.open(f"{path}{NPY}", "w", force_zip64=True) as opened:
                np.lib.format.write_array(opened, array, allow_pickle=False)


def _check_count(file: Path, members: int) -> None:
    """Holds the members found against the archive's end record, which zipfile does not.

    One changed length would hide a member in the comment of the one before.
    """
    with file.open("rb") as opened:
        opened.seek(-END.size, os.SEEK_END)
        signature, *_, total, _, _, comment = END.unpack(opened.read())
    if signature != b"PK\5\6" or comment or total != min(members, MANY):
        raise malformed(file, f"it has {members} arrays, and not as many by its own count")


def _damaged(file: Path, error: Exception) -> Exception:
    if isinstance(error, UserError):
        return error
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return malformed(file, f"it is no archive of arrays ({reason})")


def _path(member: zipfile.ZipInfo, file: Path) -> str:
    if not member.filename.endswith(NPY):
        raise malformed(file, f"{member.filename[:80]!r} in it is no array")
    return member.filename.removesuffix(NPY)


def _leaf(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: Path) -> Leaf:
    with archive.open(member) as opened:
        shape, fortran, dtype = _header(opened, file)
        size = opened.tell()
    leaf = Leaf(shape, _ours(dtype, file), partial(_read, file, member.filename, fortran, dtype))
    if size + leaf.nbytes != member.file_size:
        has = f"{member.file_size - size} bytes for {dtype}{list(shape)}"
        raise malformed(file, f"{member.filename[:80]!r} has {has}")
    return leaf


def _header(opened: Any, file: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(opened)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise malformed(file, f"an array has version {version} of the format")
    shape, fortran, dtype = readers[version](opened)
    return shape_of(shape, file), fortran, dtype


def _ours(dtype: np.dtype[Any], file: Path) -> np.dtype[Any]:
    """The dtype as this machine computes with it; of the known ones only, so never an object."""
    if dtype == RAW:
        return BFLOAT16
    if dtype.name not in DTYPES:
        raise malformed(file, f"dtype {str(dtype)[:40]} is none of {', '.join(DTYPES)}")
    return DTYPES[dtype.name]


def _read(file: Path, name: str, fortran: bool, dtype: np.dtype[Any]) -> np.ndarray:
    try:
        with zipfile.ZipFile(file) as archive, archive.open(name) as opened:
            shape, *_ = _header(opened, file)
            values = np.frombuffer(opened.read(), dtype)
    except OSError as error:
        raise unreadable(file, error) from None
    except Exception as error:  # a dozen kinds, from zipfile, zlib, ast, tokenize and NumPy
        raise _damaged(file, error) from None
    array = values.reshape(shape[::-1]).T if fortran else values.reshape(shape)
    if dtype == RAW:
        array = array.view(BFLOAT16)
    return np.array(array, _ours(dtype, file), order="C")
