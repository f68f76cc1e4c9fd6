"""Unpacking archives that came from outside: plain files, inside the folder, up to a size, or nothing.

Notable: one reader for tar, Debian packages and wheels, on the standard library alone. Links and devices are refused
outright, so no sequence of members can lead out of the folder.

Not covered: zstd-compressed Debian packages, encrypted zips.
"""

from __future__ import annotations

import io
import lzma
import os
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from speechlab.errors import InputError
from speechlab.units import Bytes


def extract(archive: Path, dest: Path, limit: Bytes) -> None:
    """Unpack a tar (any compression of the standard library), Debian package, wheel or zip.

    Args:
        archive: The file; its first bytes say what it is, not its name.
        dest: An existing folder. After an error it holds the members before the bad one.
        limit: The most that may come out, in bytes.

    Raises:
        InputError: if the archive is damaged or too big, or a member is anything but a plain file or folder
            inside ``dest``.
    """
    try:
        with archive.open("rb") as f:
            _extract(f, dest, limit)
    except InputError:
        raise
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError, OSError) as e:
        raise InputError("An archive cannot be unpacked.", got=f"{archive.name}: {e}", expected="a whole tar, deb or zip",
                         do="fetch it again") from None  # fmt: skip


def _extract(f: IO[bytes], dest: Path, limit: Bytes) -> None:
    magic = f.read(8)
    f.seek(0)
    if magic.startswith(b"PK"):
        with zipfile.ZipFile(f) as z:
            for info in z.infolist():
                limit = _admit(info.filename, info.file_size, limit)
                z.extract(info, dest)  # reads at most file_size bytes, checks the CRC, makes no links
    elif magic == b"!<arch>\n":
        _extract_tar(_ar_member(f, "data.tar"), dest, limit)
    else:
        _extract_tar(f, dest, limit)


def _extract_tar(f: IO[bytes], dest: Path, limit: Bytes) -> None:
    with tarfile.open(fileobj=f, mode="r|*") as tar:
        for member in tar:
            if not (member.isreg() or member.isdir()):
                raise InputError("An archive holds something other than plain files.", got=member.name, expected="files and folders")
            limit = _admit(member.name, member.size, limit)
            tar.extract(member, dest, filter="data")


def _admit(name: str, size: Bytes, limit: Bytes) -> Bytes:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise InputError("An archive names a path outside its folder.", got=name, expected="relative paths without ..")
    if size > limit:
        raise InputError("An archive is too big unpacked.", got=f"{size} bytes in {name}", expected=f"at most {limit} bytes more")
    return limit - size


def _ar_member(f: IO[bytes], prefix: str) -> IO[bytes]:
    """The first member of that prefix in an ``ar`` archive, as deb(5) describes it."""
    f.seek(8)
    while header := f.read(60):
        if len(header) < 60 or header[58:] != b"`\n" or not header[48:58].strip().isdigit():
            raise tarfile.ReadError("damaged ar header")
        name, size = header[:16].decode("latin-1").strip().rstrip("/"), int(header[48:58])
        if name.startswith(prefix):
            data = f.read(size)
            if len(data) != size:
                raise tarfile.ReadError(f"{name} is cut off")
            return io.BytesIO(data)
        f.seek(size + size % 2, os.SEEK_CUR)
    raise tarfile.ReadError(f"no {prefix} in it")
