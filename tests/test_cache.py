"""The kernel cache as a store: entries are complete or absent, the folder is safe, size is bounded.

What programs make of it is tested in `runtimes/test_cpu_kernels.py`.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from child import ended

from minigrad import Context, cache
from minigrad.cache import (
    Cache,
    compiler_files,
    digest,
    open_cache,
    pack,
    source_digest,
    sweep,
    unpack,
)

KEY = digest("a key")
OTHER = digest("another key")
ABOUT = {"entry": "kernel", "arguments": [0, 2, 1], "label": "rows: 4×8"}
DATA = bytes(range(256)) * 3
ENTRY = ABOUT, DATA


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def fresh(monkeypatch):
    """As if this process had not opened a cache or complained yet."""
    monkeypatch.setattr(cache, "_opened", {})
    monkeypatch.setattr(cache, "_spoken", False)


# ---- keys ----


def test_an_edited_compiler_finds_nothing(tmp_path):
    file = tmp_path / "compiler.py"
    file.write_text("x = 1\n")
    first = source_digest(str(file))
    assert source_digest(str(file)) == first
    file.write_text("x = 2\n")
    source_digest.cache_clear()
    assert source_digest(str(file)) != first
    assert source_digest() != first
    with pytest.raises(OSError):
        source_digest(str(tmp_path / "missing.py"))


def test_the_compiler_is_made_of_the_files_that_are_looked_at():
    """Their other imports do not affect code: errors, hints, locks, settings, counters."""
    home = Path(cache.__file__).parent
    looked_at = {path.relative_to(home).as_posix() for path in compiler_files()}
    imported = {
        name.replace(".", "/") + ".py"
        for path in compiler_files()
        for name in re.findall(r"^from minigrad\.([\w.]+) import", path.read_text(), re.M)
        if path.name not in ("cache.py", "__init__.py")
    }
    beside = {"errors.py", "hints.py", "locks.py", "settings.py", "program.py"}
    modules = {name for name in imported if (home / name).exists()}
    assert "target.py" in modules and modules - looked_at <= beside


def test_parts_of_a_key_do_not_run_together():
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")
    assert digest("é") == digest("é".encode())
    assert len(digest()) == 64


# ---- files ----


def test_a_file_gives_back_what_it_was_given():
    for entry in (b"", DATA, {}, ENTRY):
        assert unpack(KEY, pack(KEY, entry)) == entry


def test_every_flipped_bit_is_noticed():
    content = pack(KEY, (ABOUT, DATA[:40]))
    for place in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            assert unpack(KEY, bytes(damaged)) is None


def test_every_other_length_is_noticed():
    content = pack(KEY, (ABOUT, DATA[:40]))
    for length in range(len(content)):
        assert unpack(KEY, content[:length]) is None
    assert unpack(KEY, content + b"\0") is None
    assert unpack(KEY, content + content) is None


def test_another_keys_file_is_noticed():
    assert unpack(OTHER, pack(KEY, ENTRY)) is None


def test_another_format_is_none_of_ours(monkeypatch):
    content = pack(KEY, ENTRY)
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    assert unpack(KEY, content) is None


def test_only_plain_files_of_our_own_are_read(folder, tmp_path, monkeypatch):
    folder.mkdir()
    kept = Cache(folder)
    assert kept.read(KEY) is None
    kept.write(KEY, ENTRY)
    assert kept.read(KEY) == ENTRY
    path = kept.path(KEY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o622)
    assert kept.read(KEY) is None
    path.chmod(0o600)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert kept.read(KEY) is None
    monkeypatch.undo()
    assert kept.read(KEY) == ENTRY
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert kept.read(KEY) is None
    path.unlink()
    os.mkfifo(path)
    assert kept.read(KEY) is None
    kept.write(KEY, ENTRY)
    assert kept.read(KEY) == ENTRY
    path.unlink()
    (path / "inner").mkdir(parents=True)
    assert kept.read(KEY) is None
    kept.write(KEY, ENTRY)  # impossible, but no error
    assert kept.read(KEY) is None
    sweep(folder, 0)
    assert names_in(folder) == {path.name} and (path / "inner").is_dir()


@pytest.mark.parametrize("junk", ["pipe", "socket", "link", "loop", "empty", "other"])
def test_a_program_is_kept_whatever_lies_in_its_place(junk, folder, fresh):
    """Compiled once: the second process finds the file that the first has written."""
    program = textwrap.dedent("""
        import os, socket, sys
        from pathlib import Path
        from minigrad import GlobalCounters, Tensor, cache

        def lay(path, junk):
            if junk == "pipe": os.mkfifo(path)
            elif junk == "socket": os.mknod(path, 0o600 | 0o140000)
            elif junk == "link": path.symlink_to("nowhere")
            elif junk == "loop": path.symlink_to(path)
            else: path.write_bytes(b"junk" * (junk == "other"))

        if sys.argv[1] == "lay":
            path = cache.Cache.path
            def laid(self, key):
                if not os.path.lexists(path(self, key)): lay(path(self, key), sys.argv[2])
                return path(self, key)
            cache.Cache.path = laid
        (Tensor([1.0, 2.0]) * 3).exp().realize()
        print(GlobalCounters.kernels_compiled)
    """)
    folder.mkdir()
    for arguments, compiled in ((["lay", junk], 1), (["use"], 0)):
        done = ended("-P", "-c", program, *arguments, MINIGRAD_CACHE=str(folder))
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{compiled}\n", "")


def test_readers_see_whole_files_only(folder):
    """Two processes replace one file over and over with different contents; a third reads it."""
    folder.mkdir()
    writer = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from minigrad.cache import Cache
        kept, number = Cache(Path({str(folder)!r})), int(sys.argv[1])
        for turn in range(1500):
            kept.write({KEY!r}, (number, bytes([number]) * (1000 * number + turn)))
    """)
    writers = [
        subprocess.Popen([sys.executable, "-P", "-c", writer, str(number)]) for number in (1, 50)
    ]
    kept = Cache(folder)
    seen = {1: 0, 50: 0}
    while any(process.poll() is None for process in writers):
        entry = kept.read(KEY)
        if entry is None:
            assert sum(seen.values()) == 0  # after the first write there is always one
            continue
        number, data = entry
        assert set(data) == {number} and len(data) >= 1000 * number
        seen[number] += 1
    assert [process.returncode for process in writers] == [0, 0]
    assert all(seen.values())
    assert names_in(folder) == {kept.path(KEY).name}


# ---- its folder ----


def test_the_folder_follows_the_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with Context(CACHE=""):
        assert cache.folder_name() == str(tmp_path / ".cache/minigrad")
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        assert cache.folder_name() == str(tmp_path / ".cache/minigrad")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache.folder_name() == str(tmp_path / "xdg/minigrad")
    with Context(CACHE="~/mine"):
        assert cache.folder_name() == str(tmp_path / "mine")


def test_opened_once_per_folder(folder, fresh):
    with Context(CACHE=str(folder)):
        assert open_cache() is open_cache() is not None
    with Context(CACHE=str(folder / "inner")):
        inner = open_cache()
        assert inner is not None and inner.folder == folder / "inner"


def refusal(folder: Path, capsys) -> str:
    """The message about a folder that must not be used, which is printed once."""
    with Context(CACHE=str(folder)):
        assert open_cache() is None
        assert open_cache() is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(folder) in said
    with Context(CACHE=str(folder.parent / "also wrong\n")):
        (folder.parent / "also wrong\n").touch()
        assert open_cache() is None
    assert capsys.readouterr().err == ""  # one line per process is enough
    return said


def test_a_folder_of_somebody_else_is_not_used(folder, fresh, capsys, monkeypatch):
    folder.mkdir()
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert f"belongs to user {owner}" in refusal(folder, capsys)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_folder_where_others_may_write_is_not_used(mode, folder, fresh, capsys):
    folder.mkdir()
    folder.chmod(mode)
    assert "chmod go-w" in refusal(folder, capsys)


def test_a_folder_that_cannot_be_written_is_not_used(folder, fresh, capsys, monkeypatch):
    folder.mkdir(mode=0o500)
    if os.geteuid() == 0:  # root may write anywhere except on a read-only file system
        monkeypatch.setattr(os, "access", lambda name, mode: not mode & os.W_OK)
    assert "is not writable" in refusal(folder, capsys)


def test_a_folder_that_cannot_be_made_is_not_used(folder, fresh, capsys):
    folder.write_text("a file in the way")
    assert "to another folder" in refusal(folder, capsys)


def test_without_a_home_there_is_no_folder(fresh, capsys, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with Context(CACHE=""):
        assert open_cache() is None
    assert "no home folder" in capsys.readouterr().err


# ---- its size ----


def fill(folder: Path, count: int, size: int) -> list[Path]:
    """Entries, the oldest first."""
    kept = Cache(folder)
    paths = []
    for number in range(count):
        key = digest(str(number))
        kept.write(key, bytes(size))
        paths.append(kept.path(key))
        age = time.time() - 1000 * (count - number)
        os.utime(paths[-1], (age, age))
    return paths


def test_the_longest_unused_files_go_first(folder):
    folder.mkdir()
    paths = fill(folder, 20, 1000)
    total = sum(path.stat().st_size for path in paths)
    sweep(folder, total)
    assert all(path.exists() for path in paths)
    sweep(folder, total - 1)
    left = [path for path in paths if path.exists()]
    assert left == paths[-len(left) :]
    assert total // 2 < sum(path.stat().st_size for path in left) <= 3 * total // 4


def test_reading_counts_as_use(folder):
    folder.mkdir()
    first, *others = fill(folder, 10, 1000)
    for path in (first, *others):
        old = path.stat().st_mtime - 2 * cache.DAY
        os.utime(path, (old, old))
    assert Cache(folder).read(first.stem) is not None
    sweep(folder, 5000)
    assert first.exists() and not others[0].exists() and others[-1].exists()


def test_only_files_with_our_names_are_removed(folder):
    folder.mkdir()
    (path,) = fill(folder, 1, 1000)
    diary = folder / "diary.txt"
    near = folder / (KEY + ".minigrad.bak")
    stale, young = (folder / f"{KEY}.minigrad.{n}.tmp" for n in ("0a", "0b"))
    for file in (diary, near, stale, young):
        file.write_bytes(bytes(5000))
    old = time.time() - 10 * cache.STALE
    for file in (diary, near, stale):
        os.utime(file, (old, old))
    sweep(folder, 2000)
    assert names_in(folder) == {path.name, diary.name, near.name, young.name}
    sweep(folder, 0)
    assert names_in(folder) == {diary.name, near.name, young.name}


def test_a_process_sweeps_before_it_adds(folder, monkeypatch):
    folder.mkdir()
    monkeypatch.setattr(cache, "MOST_BYTES", 10_000)
    fill(folder, 30, 1000)  # a cache sweeps once, at its first write
    assert len(names_in(folder)) == 30
    Cache(folder).write(KEY, ENTRY)
    assert len(names_in(folder)) < 9
    assert Cache(folder).read(KEY) == ENTRY


def test_two_sweeps_at_once(folder):
    folder.mkdir()
    fill(folder, 200, 100)
    failed = []

    def work():
        try:
            sweep(folder, 1000)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(names_in(folder)) < 10
