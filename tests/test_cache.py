"""The kernel cache: it serves other processes, and nothing that happens to it harms a program."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from minigrad import Context, cache
from minigrad.cache import Cache, digest, open_cache, pack, source_digest, sweep, unpack

KEY = digest("a key")
OTHER = digest("another key")
ABOUT = {"entry": "kernel", "arguments": [0, 2, 1], "label": "rows: 4×8"}
DATA = bytes(range(256)) * 3

# A small training step with several kernels, and one with a symbolic size.
STEP = """
from minigrad import GlobalCounters, Tensor, Variable
x = Tensor([[1.0, 2.0, -1.0], [3.0, -4.0, 0.5]], device="CPU")
w = Tensor([[0.5, -1.0], [2.0, 0.25], [1.0, 1.0]], device="CPU")
loss = ((x @ w).relu().softmax(1) * Tensor([1.0, 3.0], device="CPU")).sum()
(slope,) = loss.gradient(w)
w.assign(w - 0.5 * slope)
table = Tensor.arange(12, device="CPU").reshape(6, 2)
rows = [table.shrink(((0, Variable("n", 1, 6).bind(n)), (0, 2))).sum(0).tolist() for n in (2, 5)]
results = [w.tolist(), loss.item(), rows, table.gather(0, Tensor([[5, 9]], device="CPU")).tolist()]
"""
# Prints results and what they cost.
REPORT = """
import json
names = ("programs_scheduled", "kernels_lowered", "kernels_rendered", "kernels_compiled",
         "cache_hits", "kernel_count")
print(json.dumps([results, {name: getattr(GlobalCounters, name) for name in names}]))
"""
PROGRAM = STEP + REPORT
NOTHING = {"programs_scheduled", "kernels_lowered", "kernels_rendered", "kernels_compiled"}


def environment(folder: Path | None, **more: str) -> dict[str, str]:
    """This process's environment with the cache in another folder."""
    values = {k: v for k, v in os.environ.items() if not k.startswith(("MINIGRAD_", "XDG_"))}
    if folder is not None:
        values["MINIGRAD_CACHE"] = str(folder)
    return {**values, **more}


def run(folder: Path | None, program: str = PROGRAM, before: str = "", **more: str):
    """(results, counters, error stream) of a program in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", before + program],
        capture_output=True, text=True, timeout=120, env=environment(folder, **more),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results, counters = json.loads(done.stdout)
    return results, counters, done.stderr


def assert_nothing_made(counters: dict[str, int]) -> None:
    assert {name: counters[name] for name in NOTHING} == dict.fromkeys(NOTHING, 0)
    assert counters["cache_hits"] > 0


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A folder that one process has filled, and that process's results and counters."""
    place = tmp_path_factory.mktemp("filled") / "cache"
    results, counters, errors = run(place)
    assert errors == ""
    return place, results, counters


@pytest.fixture
def copied(filled, folder):
    """A copy of the filled folder, which a test may damage."""
    folder.mkdir(mode=0o700)
    for path in filled[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
        (folder / path.name).chmod(0o600)
    return folder


@pytest.fixture
def fresh(monkeypatch):
    """As if this process had not opened a cache nor complained yet."""
    monkeypatch.setattr(cache, "_opened", {})
    monkeypatch.setattr(cache, "_spoken", False)


# ---- what it is for ----


def test_a_second_process_makes_nothing(filled):
    place, results, counters = filled
    assert counters["programs_scheduled"] > 2 and counters["cache_hits"] == 0
    assert 3 <= counters["kernels_lowered"] <= counters["kernel_count"]
    made = counters["kernels_compiled"]
    assert counters["kernels_lowered"] == counters["kernels_rendered"] == made
    again, more, errors = run(place)
    assert again == results and errors == ""
    assert_nothing_made(more)
    assert more["cache_hits"] == made + counters["programs_scheduled"] == len(names_in(place))
    assert more["kernel_count"] == counters["kernel_count"]


def test_one_kernel_serves_many_programs(folder):
    """A kernel is found even where the program as a whole is new."""
    start = """
from minigrad import GlobalCounters, Tensor
x = Tensor([[1.0, 2.0, -1.0], [3.0, -4.0, 0.5]], device="CPU")
w = Tensor([[0.5, -1.0], [2.0, 0.25], [1.0, 1.0]], device="CPU")
product = (x @ w).relu().contiguous()
"""
    results, counters, _ = run(folder, start + "results = product.tolist()" + REPORT)
    assert results == [[3.5, 0.0], [0.0, 0.0]]
    assert counters["kernels_compiled"] == 1 and counters["cache_hits"] == 0
    results, counters, _ = run(folder, start + "results = product.sum(0).tolist()" + REPORT)
    assert results == [3.5, 0.0]
    assert counters["programs_scheduled"] == 1
    assert counters["kernels_compiled"] == 1 and counters["cache_hits"] == 1


def test_a_second_training_run_makes_nothing(folder):
    """Every step of a captured training loop, and its validation, come from the disk."""
    program = """
from minigrad import GlobalCounters, Tensor, nn
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.train import MatrixAdamW, TrainingPlan, make_step
Tensor.manual_seed(1)
plan = TrainingPlan()
model = GPT(GPTConfig(layers=2, heads=2, dim=16, context=8, vocabulary=11, dropout=0.1))
optimizer = MatrixAdamW(nn.state.get_parameters(model), plan)
step = make_step(model, optimizer, plan.clip)
results = []
for number in range(4):
    ids = Tensor([[(5 * row + number + place) % 11 for place in range(8)] for row in range(3)])
    with Tensor.train():
        results.append(step(ids, (ids + 1) % 11).item())
with Tensor.no_grad():
    results.append(model.loss(ids, ids).item())
"""
    first, counters, _ = run(folder, program + REPORT)
    assert counters["kernels_compiled"] > 10
    again, counters, _ = run(folder, program + REPORT)
    assert again == first
    assert_nothing_made(counters)


def test_settings_do_not_mix(copied, filled):
    results, counters, _ = run(copied, MINIGRAD_FUSE="0")
    assert counters["programs_scheduled"] > 0
    assert flat(results) == pytest.approx(flat(filled[1]), rel=1e-5)
    for fuse in ("0", "1"):
        assert_nothing_made(run(copied, MINIGRAD_FUSE=fuse)[1])


def flat(value) -> list[float]:
    if isinstance(value, list):
        return [x for item in value for x in flat(item)]
    return [value]


def test_debugging_shows_what_would_be_made(copied, filled):
    results, counters, errors = run(copied, MINIGRAD_DEBUG="4")
    assert results == filled[1]
    assert "schedule: " in errors and "parallel for" in errors
    assert counters["kernels_lowered"] == filled[2]["kernels_lowered"]
    results, counters, errors = run(copied, MINIGRAD_DEBUG="2")
    assert results == filled[1] and "Gop/s" in errors
    assert_nothing_made(counters)


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


def test_parts_of_a_key_do_not_run_together():
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")
    assert digest("é") == digest("é".encode())
    assert len(digest()) == 64


# ---- damaged files ----


def test_a_file_gives_back_what_it_was_given():
    for data in (b"", DATA):
        for about in ({}, ABOUT):
            assert unpack(KEY, pack(KEY, about, data)) == (about, data)


def test_every_flipped_bit_is_noticed():
    content = pack(KEY, ABOUT, DATA[:40])
    for place in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            assert unpack(KEY, bytes(damaged)) is None


def test_every_other_length_is_noticed():
    content = pack(KEY, ABOUT, DATA[:40])
    for length in range(len(content)):
        assert unpack(KEY, content[:length]) is None
    assert unpack(KEY, content + b"\0") is None
    assert unpack(KEY, content + content) is None


def test_another_keys_file_is_noticed():
    assert unpack(OTHER, pack(KEY, ABOUT, DATA)) is None


def test_another_format_is_none_of_ours(monkeypatch):
    content = pack(KEY, ABOUT, DATA)
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    assert unpack(KEY, content) is None


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    place = 2 * len(content) // 3
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


def empty(content: bytes) -> bytes:
    return b""


def foreign(content: bytes) -> bytes:
    return b"\x7fELF" + bytes(len(content))


@pytest.mark.parametrize("damage", [cut, flip, empty, foreign])
def test_damaged_files_are_made_anew(damage, copied, filled):
    for path in copied.iterdir():
        path.write_bytes(damage(path.read_bytes()))
    results, counters, errors = run(copied)
    assert results == filled[1] and errors == ""
    assert counters["kernels_compiled"] == filled[2]["kernels_compiled"]
    assert counters["cache_hits"] == 0
    results, counters, _ = run(copied)
    assert results == filled[1]
    assert_nothing_made(counters)


def test_swapped_files_are_made_anew(copied, filled):
    paths = sorted(copied.iterdir())
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    results, counters, _ = run(copied)
    assert results == filled[1] and counters["cache_hits"] == 0
    assert [path.read_bytes() for path in paths] == contents


def test_one_missing_kernel_is_made_alone(copied, filled):
    """A program that is known, but not all of its kernels, is scheduled and completed."""
    for path in copied.iterdir():
        entry = unpack(path.stem, path.read_bytes())
        assert entry is not None
        if entry[1]:
            path.unlink()
            break
    results, counters, _ = run(copied)
    assert results == filled[1]
    assert counters["kernels_compiled"] == 1 and counters["programs_scheduled"] >= 1
    assert names_in(copied) == names_in(filled[0])


@pytest.mark.parametrize(
    "about", [{}, {"entry": 1}, {**ABOUT, "more": 1}, {"arena_bytes": "x", "kernels": 3}]
)
def test_descriptions_that_make_no_sense_are_misses(about, copied, filled):
    for path in copied.iterdir():
        entry = unpack(path.stem, path.read_bytes())
        assert entry is not None
        path.write_bytes(pack(path.stem, about, entry[1]))
    results, counters, _ = run(copied)
    assert results == filled[1] and counters["cache_hits"] == 0


def test_only_plain_files_of_our_own_are_read(folder, tmp_path, monkeypatch):
    folder.mkdir()
    kept = Cache(folder)
    assert kept.read(KEY) is None
    kept.write(KEY, ABOUT, DATA)
    assert kept.read(KEY) == (ABOUT, DATA)
    path = kept.path(KEY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o622)
    assert kept.read(KEY) is None
    path.chmod(0o600)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert kept.read(KEY) is None
    monkeypatch.undo()
    assert kept.read(KEY) == (ABOUT, DATA)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert kept.read(KEY) is None
    path.unlink()
    os.mkfifo(path)
    assert kept.read(KEY) is None
    kept.write(KEY, ABOUT, DATA)
    assert kept.read(KEY) == (ABOUT, DATA)
    path.unlink()
    path.mkdir()
    assert kept.read(KEY) is None
    kept.write(KEY, ABOUT, DATA)  # not possible, and no error
    assert names_in(folder) == {path.name}


# ---- where it is ----


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


def test_the_folder_is_made_for_the_user_alone(tmp_path):
    run(None, HOME=str(tmp_path))
    made = tmp_path / ".cache/minigrad"
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in made.iterdir())
    assert len(list(made.iterdir())) > 3


def test_opened_once_per_folder(folder, fresh):
    with Context(CACHE=str(folder)):
        assert open_cache() is open_cache() is not None
    with Context(CACHE=str(folder / "inner")):
        inner = open_cache()
        assert inner is not None and inner.folder == folder / "inner"


def refusal(folder: Path, capsys) -> str:
    """What is said about a folder that must not be used, once."""
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
    if os.geteuid() == 0:  # root may write anywhere but to a system that is mounted read-only
        monkeypatch.setattr(os, "access", lambda name, mode: not mode & os.W_OK)
    assert "cannot be written" in refusal(folder, capsys)


def test_a_folder_that_cannot_be_made_is_not_used(folder, fresh, capsys):
    folder.write_text("a file in the way")
    assert "name another folder" in refusal(folder, capsys)


def test_without_a_home_there_is_no_folder(fresh, capsys, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with Context(CACHE=""):
        assert open_cache() is None
    assert "no home folder" in capsys.readouterr().err


def test_a_program_runs_without_a_cache(filled, folder):
    folder.mkdir()
    folder.chmod(0o777)
    for _ in range(2):
        results, counters, errors = run(folder)
        assert results == filled[1]
        assert counters == filled[2]
        assert errors.count("\n") == 1 and "chmod go-w" in errors
    assert names_in(folder) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away takes root")
def test_a_program_leaves_a_foreign_folder_alone(filled, folder):
    folder.mkdir()
    os.chown(folder, 12345, -1)
    results, _, errors = run(folder)
    assert results == filled[1] and "belongs to user 12345" in errors
    assert names_in(folder) == set()


def test_a_full_disk_is_no_failure(filled, folder):
    """A limit on the size of files makes every write end early, as on a full disk."""
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    results, counters, errors = run(folder, before=limit)
    assert results == filled[1]
    assert counters == filled[2]
    assert errors.count("\n") == 1 and "could not write" in errors
    assert names_in(folder) == set()


def test_a_folder_that_vanishes_is_no_failure(filled, folder):
    program = textwrap.dedent(f"""
        import shutil
        from minigrad import Tensor
        Tensor([1.0], device="CPU").exp().tolist()
        shutil.rmtree({str(folder)!r})
    """)
    results, _, _ = run(folder, before=program)
    assert results == filled[1]


# ---- many at once ----


def test_eight_processes_start_on_an_empty_cache(filled, folder):
    started = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(folder),
        )
        for _ in range(8)
    ]  # fmt: skip
    for process in started:
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0 and errors == "", errors
        assert json.loads(output)[0] == filled[1]
    assert names_in(folder) == names_in(filled[0])
    assert_nothing_made(run(folder)[1])


def test_readers_see_whole_files_only(folder):
    """Two processes replace one file over and over with different contents; a third reads it."""
    folder.mkdir()
    writer = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from minigrad.cache import Cache
        kept, number = Cache(Path({str(folder)!r})), int(sys.argv[1])
        for turn in range(1500):
            kept.write({KEY!r}, {{"number": number}}, bytes([number]) * (1000 * number + turn))
    """)
    writers = [
        subprocess.Popen([sys.executable, "-P", "-c", writer, str(number)]) for number in (1, 50)
    ]
    kept = Cache(folder)
    seen = {1: 0, 50: 0}
    while any(process.poll() is None for process in writers):
        entry = kept.read(KEY)
        if entry is None:
            assert sum(seen.values()) == 0  # from the first write on there is always one
            continue
        about, data = entry
        assert set(data) == {about["number"]} and len(data) >= 1000 * about["number"]
        seen[about["number"]] += 1
    assert [process.returncode for process in writers] == [0, 0]
    assert all(seen.values())
    assert names_in(folder) == {kept.path(KEY).name}


def test_threads_share_kernels(filled):
    """Threads that start the same program together make its kernels once."""
    program = """
import threading
found = []
def work():
    names = {}
    exec(STEP, names)
    found.append(names["results"])
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
from minigrad import GlobalCounters
results = found
"""
    home = str(filled[0].parent / "home")
    results, counters, _ = run(None, f"STEP = {STEP!r}" + program + REPORT, HOME=home)
    assert results == [filled[1]] * 4
    for name in NOTHING:
        assert counters[name] == filled[2][name]


# ---- its size ----


def fill(folder: Path, count: int, size: int) -> list[Path]:
    """Entries whose ages fall from first to last."""
    kept = Cache(folder)
    paths = []
    for number in range(count):
        key = digest(str(number))
        kept.write(key, {}, bytes(size))
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
    fill(folder, 30, 1000)  # one cache sweeps once, when it starts to write
    assert len(names_in(folder)) == 30
    Cache(folder).write(KEY, ABOUT, DATA)
    assert len(names_in(folder)) < 9
    assert Cache(folder).read(KEY) == (ABOUT, DATA)


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
