"""Contradictory flags, files that would be lost, and sizes that make no sense."""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from devices import OPENCL, OTHER

from minigrad.models import (
    console,
    gpt,
    gpt_commands,
    metrics,
    mlp,
    moe_commands,
    network,
    regression,
    sizing,
)
from minigrad.models.checkpoint import alone_at
from minigrad.models.errors import InputError
from minigrad.models.gpt_checkpoint import load_training, save_checkpoint
from minigrad.models.gpt_checks import place_of_checkpoint
from minigrad.models.sizing import H100
from minigrad.settings import Context

from .test_chat import talker

pytestmark = pytest.mark.usefixtures("brief")
WORDS = "to be, or not to be: that is the question.\n" * 60
SMALL = ["--text", "text.txt", "--layers", "1", "--heads", "2", "--dim", "16", "--context", "8",
         "--batch", "2", "--steps", "3"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and the files of a training that recorded its steps."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(WORDS)
    here = os.getcwd()
    os.chdir(folder)
    try:
        gpt_commands.main([*SMALL, "--metrics", "m.jsonl"])
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `trained`, as the current folder."""
    for path in trained.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def end_of(
    script: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """(status, standard output, error output); a traceback of a bug fails the test."""
    previous, sys.argv = sys.argv, ["script", *arguments]
    try:
        status = console.run(script.main)
    except SystemExit as ended:  # argparse
        status = int(str(ended.code))
    finally:
        sys.argv = previous
    return (status, *capsys.readouterr())


GPT, NEW = gpt_commands, SMALL
MISTAKES: list[tuple[ModuleType, list[str], str]] = [
    (GPT, [*NEW, "--checkpoint", "gpt.safetensors"], "gpt.safetensors already exists: --overwrite"),
    (GPT, ["--resume", "gpt.safetensors", "--steps", "5", "--checkpoint", "m.jsonl"], "m.jsonl al"),
    (GPT, [*NEW, "--checkpoint", "new.png"], "its loss curves and --checkpoint are both new.png"),
    (GPT, [*NEW, "--checkpoint", "text.txt", "--overwrite"], "--checkpoint and --text are both"),
    (GPT, [*NEW, "--checkpoint", "a", "--metrics", "./a"], "--metrics and --checkpoint are both"),
    (GPT, [*NEW, "--metrics", "text.txt"], "--metrics and --text are both text.txt"),
    (GPT, [*NEW, "--dp", "2", "--trace", "text.txt"], "--trace and --text are both text.txt"),
    (GPT, [*NEW, "--dp", "2", "--trace", "no/t.json"], "cannot write no/t.json: there is no"),
    (GPT, [*NEW, "--checkpoint", "folder.safetensors"], "cannot write folder.png: it is a folder"),
    (GPT, [*NEW, "--active", "3"], "--active 3 has no effect without --experts"),
    (GPT, [*NEW, "--schedule", "zb"], "--schedule has no effect without --pp"),
    (GPT, [*NEW, "--pp", "2", "--layers", "4", "--pieces", "2"], "only --schedule interleaved"),
    (GPT, [*NEW, "--dp", "1000000000000"], "1,000,000,000,000 ranks: expected at most 1,024"),
    (GPT, [*NEW, "--sp", "1000000"], "1,000,000 ranks: expected at most 1,024"),
    (GPT, [*NEW, "--pp", "1000000000000"], "1,000,000,000,000 ranks: expected at most 1,024"),
    (GPT, [*NEW[:-2], "--explain", "folder.png"], "cannot write folder.png: it is a folder"),
    (GPT, [*NEW, "--explain", "e.html", "--metrics", "new"], "--metrics has no effect with --exp"),
    (GPT, [*NEW, "--explain", "e.html"], "--steps has no effect with --explain, which trains not"),
    (GPT, [*NEW, "--checkpoint", ""], "--checkpoint: expected at least one character, got ''"),
    (GPT, ["serve", "--host", ""], "--host: expected at least one character, got ''"),
    (GPT, ["serve", "--port", "65536"], "--port: expected at most 65535, got 65536"),
    (GPT, ["serve", "--api-key", ""], "--api-key: expected printable ASCII"),
    (GPT, ["serve", "--api-key", "a b"], "characters without spaces, got 'a b'"),
    (GPT, [*NEW, "--vocabulary", "300"], "--vocabulary 300 has no effect with --tokenizer"),
    (GPT, ["--weights", "gpt.safetensors", "--text", "text.txt", "--layers", "2"],
     "--layers is 2, but the model in gpt.safetensors has 1: leave the flag out"),
    (GPT, ["--weights", "gpt.safetensors", "--text", "text.txt", "--key-heads", "2"],
     "--key-heads is 2, but the model in gpt.safetensors has 0: leave the flag out"),
    (GPT, ["--weights", "gpt.safetensors", "--text", "text.txt", "--context", "9"],
     "--context is 9, but the model in gpt.safetensors has 8: give at most that"),
    (GPT, ["--weights", "gpt.safetensors", "--text", "text.txt", "--architecture", "llama"],
     "--architecture has no effect with --weights"),
    (GPT, ["--resume", "gpt.safetensors", "--steps", "9", "--tokenizer", "gpt2"],
     "--tokenizer is gpt2, but the training in gpt.safetensors began with character"),
    (GPT, ["--resume", "gpt.safetensors", "--steps", "9", "--weights", "w"],
     "but the training in gpt.safetensors began with None"),
    (GPT, [*NEW, "--batch", "100000000"], "a step of --batch 100000000 needs about 1,1"),
    (GPT, [*NEW, "--layers", "1000000000"], "GB of memory, but this machine has "),
    (GPT, [*NEW, "--dim", "1000000", "--heads", "1000"], "GB of memory, but this machine has "),
    (GPT, ["sample", "--keep", "3", "--context-policy", "error"], "--keep 3 has no effect with"),
    (GPT, ["inspect", "to be", "--checkpoint", "gpt.safetensors", "--picture", "a.jpg"],
     "--picture: expected a file name ending in .png, got a.jpg"),
    (mlp, ["--picture", "a.png", "--metrics", "a.png"], "--picture and --metrics are both a.png"),
    (mlp, ["--norm", "--batch", "1"], "--norm with --batch 1: one digit has no statistics"),
    (mlp, ["--picture", "x.txt"], "--picture: expected a file name ending in .png, got x.txt"),
    (mlp, ["--picture", "folder.png"], "cannot write folder.png: it is a folder"),
    (mlp, ["--dp", "2", "--trace", "folder.png"], "cannot write folder.png: it is a folder"),
    (mlp, ["--explain", "e.html", "--picture", "a.png"], "--picture has no effect with --explain"),
    (mlp, ["--explain", "e.html", "--patience", "1"], "--patience has no effect with --explain"),
    (moe_commands, ["--explain", "e.html", "--steps", "9"], "--steps has no effect with --explain"),
    (mlp, ["--neuron", "--epochs", "3"], "--epochs has no effect with --neuron"),
    (regression, ["--picture", "x"], "--picture: expected a file name ending in .png, got x"),
    (regression, ["--noise", "1e6"], "--noise: expected at most 1000, got 1e6"),
    (regression, ["--points", "1"], "--points: expected at least 2, got 1"),
    (regression, ["--points", "10000000000000"], "--points 10000000000000 needs about 640,000 GB"),
    (moe_commands, ["--text", "text.txt", "--batch", "100000000"], "GB of memory, but this"),
    (sizing, ["--device-memory", "80"], "80 means 80 B: add the unit, as in 80GB"),
    (sizing, ["--device-memory", "80X"], "expected a number of B, such as 80GB, got 80X"),
    (sizing, ["--device-memory", "1e999"], "expected a number above 0, got 1e999"),
    (sizing, ["--layers", "1" + "0" * 400], "expected at most 1e+18, got 1000"),
    (network, ["--batch-tokens", "1e300"], "expected at most 1e+36, got 1e300"),
    (network, ["--bandwidth", "1e300GB/s"], "expected at most 1e+36, got 1e300"),
    (sizing, ["--peak", "989"], "989 means 989 flop/s: add the unit, as in 989Gflop/s"),
    (network, ["--bandwidth", "50"], "50 means 50 B/s: add the unit, as in 50GB/s"),
    (network, ["--pp", "2", "--micro", "1000000000000"], "expected at most 131,072 forward"),
    (network, ["--pieces", "2"], "--pieces has no effect without --pp: also give --pp 2"),
    (network, ["--tp", "8", "--devices", "8", "--zero", "1"], "ZeRO-1 has no effect on one copy"),
    (network, ["--latency", "1e-6"], "--latency has no effect without --bandwidth"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "arguments", "sentence"), MISTAKES)
def test_a_mistake_is_one_sentence_and_changes_nothing(
    script: ModuleType, arguments: list[str], sentence: str, folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    status, _, said = end_of(script, arguments, capsys)
    assert status in (1, 2) and said.count("\n") == 1 and sentence in said, said
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("text", "number"),
    [("80GB", 80e9), ("80GiB", 80 * 2**30), ("8e9", 8e9), ("80 G", 80e9), ("1.5TB", 1.5e12),
     ("2e3MB", 2e9)],
)  # fmt: skip
def test_an_amount_with_its_unit(text: str, number: float) -> None:
    assert sizing.parser().parse_args(["--device-memory", text]).device_memory == number
    assert sizing.parser().parse_args([]).device_memory == H100


def test_the_readmes_command_twice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first model is kept, and `sample` takes the newest one."""
    before = (folder / "gpt.safetensors").read_bytes()
    for number in (2, 3):
        status, out, _ = end_of(gpt_commands, [*SMALL, "--seed", str(number)], capsys)
        name = f"gpt-{number}.safetensors"
        assert status == 0 and f"checkpoint {name}" in out
        assert f"gpt.safetensors already exists: this model will be saved as {name}\n" in out
    assert (folder / "gpt.safetensors").read_bytes() == before
    for age, name in enumerate(("gpt-2.safetensors", "gpt-3.safetensors", "gpt.safetensors")):
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    status, _, said = end_of(gpt_commands, ["sample", "--tokens", "2"], capsys)
    assert (status, said) == (0, "using the newest checkpoint here: gpt-2.safetensors\n")
    status, out, _ = end_of(
        gpt_commands, [*SMALL, "--checkpoint", "gpt.safetensors", "--overwrite"], capsys
    )
    assert status == 0 and (folder / "gpt.safetensors").read_bytes() != before


@pytest.mark.parametrize("name", ["z.pt", "z.bin", "z.pth", "z.gguf", "z"])
def test_a_checkpoint_of_any_name_is_read(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_bytes((folder / "gpt.safetensors").read_bytes())
    status, _, said = end_of(
        gpt_commands, ["sample", "--checkpoint", name, "--tokens", "2"], capsys
    )
    assert (status, said) == (0, "")


@pytest.mark.parametrize("given", [[*SMALL, "--checkpoint", "new.safetensors"],
                                   ["--resume", "gpt.safetensors", "--steps", "9"]])  # fmt: skip
def test_two_trainings_do_not_write_one_file(
    given: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two that were started together, the later one replaced the other's model."""
    path, before = Path(given[-1] if "--checkpoint" in given else given[1]), os.listdir()
    with alone_at(path):
        status, _, said = end_of(gpt_commands, given, capsys)
    assert status == 1 and f"another process writes {path}: give" in said
    assert os.listdir() == before
    assert end_of(gpt_commands, given, capsys)[0] == 0


def test_two_trainings_do_not_write_one_record(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The later one emptied the file, and then both wrote to it."""
    given = [*SMALL, "--checkpoint", "new.safetensors", "--metrics", "m.jsonl"]
    with metrics.Metrics("m.jsonl") as other:
        other.record(step=1, loss=2.0)
        status, _, said = end_of(gpt_commands, given, capsys)
    assert status == 1 and "another process writes --metrics m.jsonl: give another file" in said
    assert len(Path("m.jsonl").read_text().splitlines()) == 1
    assert end_of(gpt_commands, given, capsys)[0] == 0
    assert len(Path("m.jsonl").read_text().splitlines()) == 3
    for _ in range(2):  # files that are no records are not claimed
        with metrics.Metrics(os.devnull), metrics.Metrics(os.devnull) as nothing:
            nothing.record(step=1, loss=2.0)


def test_two_trainings_in_one_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first has saved nothing yet, so the second finds no file of its name."""
    (folder / "gpt.safetensors").unlink()
    with alone_at(Path("gpt.safetensors")), alone_at(Path("gpt-2.safetensors")):
        status, out, said = end_of(gpt_commands, SMALL, capsys)
    assert (status, said) == (0, "") and "checkpoint gpt-3.safetensors" in out
    told = "another training writes gpt.safetensors: this model will be saved as gpt-3.safetensors"
    assert f"{told}\n" in out
    assert not (folder / "gpt.safetensors").exists()


def test_two_trainings_that_begin_at_once(folder: Path) -> None:
    """Both chose one name, and the later one ended with an error."""
    flags = gpt_commands.parser().parse_args(["train"])
    places = [place_of_checkpoint(flags, set()) for _ in range(3)]
    assert [name for name, _ in places] == [f"gpt-{number}.safetensors" for number in (2, 3, 4)]
    for _, alone in places:
        alone.close()
    name, alone = place_of_checkpoint(flags, set())
    with alone:
        assert name == "gpt-2.safetensors"


def test_a_wrong_kind_of_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    """No header stands above nothing."""
    status, out, said = end_of(network, ["measure", "--kinds", "dp", "foo"], capsys)
    assert (status, out) == (1, "") and "--kinds: expected some of" in said


def test_resume_remembers_the_metrics(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resuming = ["--resume", "gpt.safetensors", "--steps"]
    stored = load_training(gpt.GPT, folder / "gpt.safetensors")[2]
    assert stored is not None
    record = Path(stored.flags["metrics"])  # in the folder of the training
    before = record.read_bytes()
    status, out, _ = end_of(gpt_commands, [*resuming, "4", "--metrics", "m.jsonl"], capsys)
    assert status == 0 and "appending metrics to m.jsonl\n" in out
    status, out, _ = end_of(gpt_commands, [*resuming, "6"], capsys)
    assert status == 0 and f"appending metrics to {folder / 'm.jsonl'}\n" in out
    lines = (folder / "m.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert record.read_bytes() == before
    # meanwhile another training has written the file
    (folder / "m.jsonl").write_text('{"step": 1, "loss": 7.0}\n')
    status, _, said = end_of(gpt_commands, [*resuming, "8"], capsys)
    assert status == 1 and "is the record of another training: not changed" in said


def test_many_points_need_no_surface_of_them_all(folder: Path) -> None:
    """The error surface once took an array of 6,561 rows; computed from moments it takes none."""
    data = regression.points(1000, 0.5, 3)
    k0, k1 = np.meshgrid(np.linspace(-3, 3, 5), np.linspace(-2, 4, 7))
    each = k0[..., None] + k1[..., None] * data.x.astype(float) - data.y
    assert np.allclose(regression.mean_square_error(k0, k1, data), (each**2).mean(-1), rtol=1e-12)


@pytest.mark.parametrize("kind", [OTHER, OPENCL])
def test_ranks_begin_only_on_devices_that_exchange(kind: str) -> None:
    """OpenCL's threads, still at work at the end, now and then ended the process."""
    with Context(DEVICE=kind):
        console.check_device_of_ranks(1)
        if kind == OTHER:
            console.check_device_of_ranks(2)
            return
        with pytest.raises(InputError, match="parallel programs run on CPU and REF devices"):
            console.check_device_of_ranks(2)


def test_out_of_memory_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: object) -> None:
        raise MemoryError("4 GB")

    monkeypatch.setattr(sys, "argv", ["script"])
    assert console.run(fails) == 1
    assert capsys.readouterr().err == "script: out of memory: 4 GB\n"


# --- chat -----------------------------------------------------------------------------------------


@pytest.fixture
def at_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[Any]]:
    """(flags of a chat, what the user types: lines, or exceptions)."""
    path, typed = tmp_path / "talker.safetensors", list[Any]()
    save_checkpoint(path, *talker())

    class Terminal:
        def isatty(self) -> bool:
            return True

    def typing(_: str) -> str:
        if not typed:
            raise EOFError
        line = typed.pop(0)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", typing)
    flags = ["chat", "--checkpoint", str(path), "--tokens", "40", "--temperature", "1"]
    return flags, typed


def test_an_interruption_ends_the_answer_only(
    at_a_terminal: tuple[list[str], list[Any]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    flags, typed = at_a_terminal
    decode = importlib.import_module("minigrad.models.decode")
    drawn, draw = list[int](), decode.Decoder.draw
    typed += ["Hi", "And now?"]

    def chosen(decoder: Any) -> list[int]:
        drawn.append(len(typed))
        if drawn.count(1) == 3 and typed:
            os.kill(os.getpid(), signal.SIGINT)
        draw(decoder)
        return [65]

    monkeypatch.setattr(decode.Decoder, "draw", chosen)
    status, out, _ = end_of(gpt_commands, flags, capsys)
    assert status == 0
    assert out.splitlines()[1:] == ["A" * 3, "A" * 40]
    typed += ["Hi", KeyboardInterrupt()]
    status, _, said = end_of(gpt_commands, flags, capsys)
    assert (status, said) == (130, "script: interrupted\n")


def test_a_question_that_is_cut_says_so(
    at_a_terminal: tuple[list[str], list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    flags, typed = at_a_terminal
    typed += ["x" * 400, "short"]
    _, _, said = end_of(gpt_commands, [*flags, "--tokens", "3", "--keep", "9"], capsys)
    assert said.count("\n") == 1
    assert "tokens; the model reads only the first 9 and the last 247\n" in said
    _, _, said = end_of(
        gpt_commands, ["sample", "--checkpoint", flags[2], "--prompt", "y" * 300, "--tokens", "1"],
        capsys,
    )  # fmt: skip
    assert said == "--prompt has 300 tokens; the model reads only the last 256\n"


def test_a_record_that_fits_is_cut_to_the_known_steps(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    lines = [json.dumps({"step": step, "loss": step / 7}) + "\n" for step in (1, 2, 3)]
    path.write_text("".join(lines))
    with metrics.Metrics(str(path), [{"step": 1, "loss": 1 / 7}, {"step": 2, "loss": 2 / 7}]):
        assert path.read_text() == "".join(lines[:2])
    assert math.isclose(json.loads(lines[2])["loss"], 3 / 7)
