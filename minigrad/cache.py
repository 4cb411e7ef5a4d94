"""The kernel cache: compiled code is reused, in this process and in others.

One file per entry, in a folder that belongs to the user: `MINIGRAD_CACHE`, else
`$XDG_CACHE_HOME/minigrad`, else `~/.cache/minigrad`. Entries hold machine code, and a pickle may
run code when it is read, so nobody else may have write permission for the folder. A file is named
after its key, a hash of everything that the entry depends on:

    checksum (of format, key and all that follows) · the entry, as `pickle` writes it

A file is written under a temporary name and then renamed. So a reader sees a whole file or none,
and no lock is needed. A damaged or truncated file, or one with another file's name, counts as
missing.
Errors of the cache never fail a program; they only cost time.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import stat
import struct
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from minigrad.locks import new_lock
from minigrad.settings import getenv

FORMAT = 3  # of the files; changing it makes all older files invalid
MOST_BYTES = 1 << 30  # in the folder; beyond that, the longest unused files are removed
LARGEST = 1 << 28  # bytes of one file
STALE = 3600  # seconds after which a temporary file is no longer in use
DAY = 86400

CHECKED = 32  # bytes of a checksum

_LENGTH = struct.Struct("<I")
_OURS = re.compile(r"[0-9a-f]{64}\.minigrad(\.[0-9a-f]+\.tmp)?")


def digest(*parts: str | bytes) -> str:
    """A hash of the parts, in this order: 64 hexadecimal digits."""
    hashed = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hashed.update(_LENGTH.pack(len(data)))
        hashed.update(data)
    return hashed.hexdigest()


@cache
def source_digest(*more: str) -> str:
    """A hash of the compiler's own source, so that an edited checkout finds no outdated entries.

    more: further files besides `compiler_files()`. OSError if a file cannot be read.
    """
    return digest(*(file.read_bytes() for file in (*compiler_files(), *map(Path, more))))


def compiler_files() -> list[Path]:
    """The files of this package that determine the code of a graph."""
    home = Path(__file__).parent
    files = [home / name for name in ("__init__.py", "dtype.py", "target.py", "compile.py")]
    for room in ("graph", "schedule", "loops", "render"):
        files += sorted((home / room).rglob("*.py"))
    return [*files, Path(__file__)]


class Cache:
    """Entries in a folder that was found to be safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._swept = False

    def path(self, key: str) -> Path:
        """The file of a key."""
        return self.folder / f"{key}.minigrad"

    def read(self, key: str) -> Any:
        """The entry of a key; None if there is no valid one."""
        with suppress(OSError):
            return unpack(key, _content(self.path(key)))
        return None

    def write(self, key: str, entry: object) -> None:
        """Write an entry, if possible."""
        try:
            if not self._swept:
                self._swept = True
                sweep(self.folder, MOST_BYTES)
            _put(self.path(key), pack(key, entry))
        except OSError as error:
            _say(f"cannot write to the kernel cache {self.folder}: {error.strerror}")


def pack(key: str, entry: object) -> bytes:
    """The content of a file."""
    body = pickle.dumps(entry)
    return _checksum(key, body) + body


def unpack(key: str, content: bytes) -> Any:
    """The entry of `pack`; None if a single bit has changed, or the key is another."""
    body = content[CHECKED:]
    return pickle.loads(body) if content[:CHECKED] == _checksum(key, body) else None


def _checksum(key: str, body: bytes) -> bytes:
    kind = f"minigrad {FORMAT}".encode()
    name = bytes.fromhex(key)
    return hashlib.blake2b(body, digest_size=CHECKED, key=name, person=kind).digest()


def _content(path: Path) -> bytes:
    """The bytes of a file of our own; OSError for anything else (a link, a pipe, a folder)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or _foreign(status) or status.st_size > LARGEST:
            raise PermissionError(f"{path} is not a regular file of this user")
        if time.time() - status.st_mtime > DAY:  # show `sweep` that it is in use
            with suppress(OSError):
                os.utime(descriptor)
        return os.read(descriptor, status.st_size + 1)
    finally:
        os.close(descriptor)


def _put(path: Path, content: bytes) -> None:
    """Write a file so that it appears as a whole."""
    made = f"{path}.{os.urandom(8).hex()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(made, flags, 0o600)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            while content:
                content = content[file.write(content) :]
        os.replace(made, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(made)
        raise


def sweep(folder: Path, most: int) -> None:
    """Remove stale temporary files and, if there are too many bytes, the longest unused entries.

    Counts and touches only files with the cache's own names.
    """
    now = time.time()
    entries: list[tuple[float, int, str]] = []
    with os.scandir(folder) as found:
        for item in found:
            if _OURS.fullmatch(item.name):
                with suppress(OSError):  # another process may be sweeping too
                    status = item.stat(follow_symlinks=False)
                    if not item.name.endswith(".tmp"):
                        entries.append((status.st_mtime, status.st_size, item.path))
                    elif now - status.st_mtime > STALE:
                        os.unlink(item.path)
    total = sum(size for _, size, _ in entries)
    if total <= most:
        return
    for _, size, path in sorted(entries):
        if total <= 3 * most // 4:
            break
        with suppress(OSError):
            os.unlink(path)
        total -= size


# ---- which folder, and whether it is safe ----

_lock = new_lock()
_opened: dict[str, Cache | None] = {}
_spoken = False


def open_cache() -> Cache | None:
    """The cache in the folder that the settings name; None if that folder must not be used."""
    name = folder_name()
    with _lock:
        if name not in _opened:
            reason = _prepare(name)
            _opened[name] = None if reason else Cache(Path(name))
            if reason:
                _say(f"not using the kernel cache {name!r}: {reason}")
        return _opened[name]


def folder_name() -> str:
    """The cache's folder, which may not exist yet. An absolute path unless there is no home."""
    chosen = str(getenv("CACHE"))
    if chosen:
        return os.path.abspath(os.path.expanduser(chosen))
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification: relative paths must be ignored
        base = os.path.expanduser("~/.cache")
    return os.path.join(base, "minigrad")


def _prepare(name: str) -> str:
    """Make the folder if needed; return why it must not be used, or an empty text."""
    if not os.path.isabs(name):
        return "there is no home folder; set MINIGRAD_CACHE to a folder"
    if not hasattr(os, "geteuid"):
        return "this system does not tell who owns a file"
    try:
        os.makedirs(name, mode=0o700, exist_ok=True)
        status = os.stat(name)
    except OSError as error:
        return f"{error.strerror}; set MINIGRAD_CACHE to another folder"
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}; set MINIGRAD_CACHE to a folder of your own"
    if _foreign(status):
        return f"other users may write to it; run chmod go-w {name!r}"
    if not os.access(name, os.R_OK | os.W_OK | os.X_OK):
        return "it is not writable; set MINIGRAD_CACHE to another folder"
    return ""


def _foreign(status: os.stat_result) -> bool:
    """Whether another user could have written this."""
    return status.st_uid != os.geteuid() or bool(status.st_mode & 0o022)


def _say(text: str) -> None:
    """Print one line to the error stream, for the process's first problem only."""
    global _spoken
    if not _spoken:
        _spoken = True
        sys.stderr.write(f"minigrad: {text} (so kernels are compiled again)\n")
