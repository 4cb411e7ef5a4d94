"""Programs and the kernel cache; each process has its own cache.

A second process compiles nothing, and damaged files never harm a program.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from child import ended, environment, said

from minigrad.cache import pack, unpack
from minigrad.runtimes.cpu_kernels import KernelCode, LaunchPlan

# A small training step with several kernels, and one with a symbolic size.
STEP = """
from minigrad import GlobalCounters, Tensor, Variable
x = Tensor([[1.0, 2.0, -1.0], [3.0, -4.0, 0.5]], device="CPU")
w = Tensor([[0.5, -1.0], [2.0, 0.25], [1.0, 1.0]], device="CPU")
loss = ((x @ w).relu().softmax(1) * Tensor([1.0, 3.0], device="CPU")).sum()
(slope,) = loss.gradient(w)
w.assign(w - 0.5 * slope)
table = Tensor([[2 * i, 2 * i + 1] for i in range(6)], device="CPU")  # no node that threads share
rows = [table.shrink(((0, Variable("n", 1, 6).bind(n)), (0, 2))).sum(0).tolist() for n in (2, 5)]
results = [w.tolist(), loss.item(), rows, table.gather(0, Tensor([[5, 3]], device="CPU")).tolist()]
"""
# Prints results and counters.
REPORT = """
import json
names = ("programs_scheduled", "kernels_lowered", "kernels_rendered", "kernels_compiled",
         "cache_hits", "kernel_count")
print(json.dumps([results, {name: getattr(GlobalCounters, name) for name in names}]))
"""
PROGRAM = STEP + REPORT
NOTHING = {"programs_scheduled", "kernels_lowered", "kernels_rendered", "kernels_compiled"}


def changes(folder: Path | None, **more: str) -> dict[str, str | None]:
    """Changes of this process's environment: no settings but these, and another cache folder."""
    values = dict.fromkeys(k for k in os.environ if k.startswith(("MINIGRAD_", "XDG_")))
    return {**values, "MINIGRAD_CACHE": None if folder is None else str(folder), **more}


def run(folder: Path | None, program: str = PROGRAM, before: str = "", **more: str):
    """(results, counters, error stream) of a program in a process of its own."""
    done = ended("-P", "-c", before + program, **changes(folder, **more))
    assert done.returncode == 0, done.stderr
    results, counters = json.loads(done.stdout)
    return results, counters, done.stderr


def assert_nothing_made(counters: dict[str, int]) -> None:
    assert {name: counters[name] for name in NOTHING} == dict.fromkeys(NOTHING, 0)
    assert counters["cache_hits"] > 0


def is_shared(entry: object) -> bool:
    """Whether an entry is an object file of several kernels: their names, and the code."""
    return isinstance(entry, tuple) and len(entry) == 2


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A folder that one process has filled, with that process's results and counters."""
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


# ---- reuse ----


def test_a_second_process_makes_nothing(filled):
    place, results, counters = filled
    assert counters["programs_scheduled"] > 2 and counters["cache_hits"] == 0
    assert 3 <= counters["kernels_lowered"] <= counters["kernel_count"]
    made = counters["kernels_compiled"]
    assert counters["kernels_lowered"] == counters["kernels_rendered"] == made
    again, more, errors = run(place)
    assert again == results and errors == ""
    assert_nothing_made(more)
    found = [unpack(path.stem, path.read_bytes()) for path in place.iterdir()]
    several = [entry for entry in found if is_shared(entry)]
    kept = len(found) - len(several) - 1  # and the driver
    assert more["cache_hits"] == made + counters["programs_scheduled"] == kept
    assert several and all(code and len(functions) > 1 for functions, code in several)
    assert more["kernel_count"] == counters["kernel_count"]


def test_one_kernel_serves_many_programs(folder, cpu):
    """A kernel is found even if the program as a whole is new."""
    start = f"""
from minigrad import GlobalCounters, Tensor
x = Tensor([[1.0, 2.0, -1.0], [3.0, -4.0, 0.5]], device={cpu!r})
w = Tensor([[0.5, -1.0], [2.0, 0.25], [1.0, 1.0]], device={cpu!r})
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


# ---- damaged files ----


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    place = 2 * len(content) // 3
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


def empty(content: bytes) -> bytes:
    return b""


def foreign(content: bytes) -> bytes:
    return b"\x7fELF" + bytes(len(content))


def test_damaged_files_are_made_anew(copied, filled):
    """Each in its own way; tests/test_cache.py tries every way on one file."""
    damages = itertools.cycle([cut, flip, empty, foreign])
    for path, damage in zip(sorted(copied.iterdir()), damages, strict=False):
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
    """A known program that lacks a kernel is scheduled again and completed."""
    for path in copied.iterdir():
        entry = unpack(path.stem, path.read_bytes())
        if isinstance(entry, tuple) and isinstance(entry[0], KernelCode):
            path.unlink()
            break
    results, counters, _ = run(copied)
    assert results == filled[1]
    assert counters["kernels_compiled"] == 1 and counters["programs_scheduled"] >= 1
    assert names_in(copied) == names_in(filled[0])


def test_a_missing_object_file_is_made_with_its_kernels(copied, filled):
    """Small kernels of a program are functions of one object file, which may be missing."""
    gone = 0
    for path in copied.iterdir():
        entry = unpack(path.stem, path.read_bytes())
        if is_shared(entry):
            gone += len(entry[0])
            path.unlink()
    assert gone > 1
    results, counters, _ = run(copied)
    assert results == filled[1] and counters["kernels_compiled"] == gone
    assert names_in(copied) == names_in(filled[0])
    assert_nothing_made(run(copied)[1])


@pytest.mark.parametrize("functions", [["other"], "no list"])
def test_object_files_without_their_functions_are_misses(functions, copied, filled):
    for path in copied.iterdir():
        entry = unpack(path.stem, path.read_bytes())
        if is_shared(entry):
            path.write_bytes(pack(path.stem, (functions, entry[1])))
    results, counters, errors = run(copied)
    assert results == filled[1] and errors == "" and counters["kernels_compiled"] > 1


def test_entries_that_make_no_sense_are_misses(copied, filled):
    plan = LaunchPlan(("no kernel",), (), (), ())
    entries = itertools.cycle([{}, 1, ("code", "", b""), plan])
    for path, entry in zip(sorted(copied.iterdir()), entries, strict=False):
        if not isinstance(unpack(path.stem, path.read_bytes()), bytes):  # the driver
            path.write_bytes(pack(path.stem, entry))
    results, counters, _ = run(copied)
    assert results == filled[1] and counters["cache_hits"] == 0


# ---- folders and disks ----


def test_the_folder_is_made_for_the_user_alone(tmp_path):
    run(None, HOME=str(tmp_path))
    made = tmp_path / ".cache/minigrad"
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in made.iterdir())
    assert len(list(made.iterdir())) > 3


def test_a_program_runs_without_a_cache(filled, folder):
    folder.mkdir()
    folder.chmod(0o777)
    results, counters, errors = run(folder)
    assert results == filled[1]
    assert counters == filled[2]
    assert errors.count("\n") == 1 and "chmod go-w" in errors
    assert names_in(folder) == set()


def test_a_program_leaves_a_foreign_folder_alone(filled, folder):
    """The program runs as another user: only root could give the folder away instead."""
    folder.mkdir(mode=0o700)
    results, _, errors = run(folder, before="import os\nos.geteuid = lambda: 12345\n")
    assert results == filled[1] and f"belongs to user {os.geteuid()}" in errors
    assert names_in(folder) == set()


def test_a_full_disk_is_no_failure(filled, folder):
    """A limit on file sizes makes every write fail, as on a full disk."""
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    results, counters, errors = run(folder, before=limit)
    assert results == filled[1]
    assert counters == filled[2]
    assert errors.count("\n") == 1 and "cannot write" in errors
    assert names_in(folder) == set()


def test_a_folder_that_vanishes_is_no_failure(filled, folder, cpu):
    program = textwrap.dedent(f"""
        import shutil
        from minigrad import Tensor
        Tensor([1.0], device={cpu!r}).exp().tolist()
        shutil.rmtree({str(folder)!r})
    """)
    results, _, _ = run(folder, before=program)
    assert results == filled[1]


# ---- many at once ----


def test_four_processes_start_on_an_empty_cache(filled, folder):
    started = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(**changes(folder)),
        )
        for _ in range(4)
    ]  # fmt: skip
    for process in started:
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0 and errors == "", errors
        assert json.loads(output)[0] == filled[1]
    # One that looks while another writes its kernels finds some, and compiles the others together.
    more = [folder / name for name in names_in(folder) - names_in(filled[0])]
    assert names_in(filled[0]) <= names_in(folder)
    assert all(is_shared(unpack(path.stem, path.read_bytes())) for path in more)
    assert_nothing_made(run(folder)[1])


def test_threads_share_kernels(filled):
    """Threads that start the same program together compile its kernels once."""
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


WATCHED = """
import threading
from minigrad import Tensor
from minigrad.runtimes.jit_compiler import Compiler
generated, seen = Compiler._generated, []
def watch(self, module):
    seen.append(threading.current_thread() is threading.main_thread())
    return generated(self, module)
Compiler._generated = watch
x, w = Tensor.full((70, 90), 0.5, device="CPU"), Tensor.full((90, 50), 0.25, device="CPU")
"""


@pytest.mark.parametrize(("batch", "here"), [(1 << 20, True), (1, False)])
def test_few_kernels_are_generated_by_the_thread_that_waits(
    tmp_path: Path, batch: int, here: bool
) -> None:
    more = f"from minigrad.runtimes import cpu_kernels\ncpu_kernels.BATCH = {batch}\n"
    values = "values = (x @ w).relu().sum(0).tolist()\n"
    report = "import json; print(json.dumps([values, all(seen)]))"
    found = said("-P", "-c", WATCHED + more + values + report, **changes(tmp_path))
    assert json.loads(found) == [[70 * 11.25] * 50, here]  # (so is the pool's code)
