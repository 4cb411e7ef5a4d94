"""The GPT: shapes, causality, initialisation, generation, training, and its command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from child import ended

from minigrad import Context, GlobalCounters, Tensor, dtypes, nn
from minigrad.models import gpt_commands
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT, Attention, GPTConfig
from minigrad.models.gpt_checkpoint import load_checkpoint, save_checkpoint
from minigrad.models.gpt_flags import COMMANDS
from minigrad.models.metrics import KEYS, Metrics
from minigrad.models.precision import product
from minigrad.models.text import Windows
from minigrad.models.tokenizer import CharacterTokenizer
from minigrad.models.train import (
    MatrixAdamW,
    TrainingPlan,
    TrainingRun,
    finish,
    make_schedule,
    validate,
)
from minigrad.programs import programs

TINY = GPTConfig(layers=2, heads=2, dim=16, context=8, vocabulary=11)
SCRIPT = Path(__file__).resolve().parents[2] / "models" / "gpt.py"


@pytest.fixture
def model(on_device: str) -> GPT:
    Tensor.manual_seed(1)
    return GPT(TINY)


def some_ids(*shape: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.random.default_rng(0).integers(0, TINY.vocabulary, shape).astype(np.int32)


def test_names_and_shapes_are_those_of_gpt2(model: GPT) -> None:
    shapes = {name: tensor.shape for name, tensor in nn.state.get_state_dict(model).items()}
    block = {
        "ln_1.weight": (16,), "ln_1.bias": (16,),
        "attn.c_attn.weight": (48, 16), "attn.c_attn.bias": (48,),
        "attn.c_proj.weight": (16, 16), "attn.c_proj.bias": (16,),
        "ln_2.weight": (16,), "ln_2.bias": (16,),
        "mlp.c_fc.weight": (64, 16), "mlp.c_fc.bias": (64,),
        "mlp.c_proj.weight": (16, 64), "mlp.c_proj.bias": (16,),
    }  # fmt: skip
    assert shapes == {
        "wte.weight": (11, 16), "wpe.weight": (8, 16),
        **{f"h.{layer}.{name}": shape for layer in range(2) for name, shape in block.items()},
        "ln_f.weight": (16,), "ln_f.bias": (16,),
    }  # fmt: skip


def test_initial_weights(device: str) -> None:
    with Context(DEVICE=device):
        Tensor.manual_seed(3)
        tensors = nn.state.get_state_dict(GPT(GPTConfig(2, 2, 64, 32, 200)))
        values = {name: tensor.numpy() for name, tensor in tensors.items()}
    for name, value in values.items():
        if name.endswith("bias"):
            assert (value == 0).all()
        elif ".ln_" in f".{name}":
            assert (value == 1).all()
        else:
            wanted = 0.01 if name.endswith("c_proj.weight") else 0.02  # 0.02 / √(2 · 2 layers)
            assert value.std() == pytest.approx(wanted, rel=0.06), name
            assert abs(value.mean()) < 0.1 * wanted, name


def test_a_seed_gives_the_same_weights_on_every_device(device: str, reference: str) -> None:
    found = []
    for place in (device, reference):
        with Context(DEVICE=place):
            Tensor.manual_seed(4)
            found.append(GPT(TINY).h[1].mlp.c_fc.weight.numpy())
    assert np.allclose(found[0], found[1], rtol=1e-5, atol=1e-8)


def test_layers_of_one_shape_are_drawn_by_one_program(on_device: str) -> None:
    found = []
    for layers, dim in ((2, 12), (5, 20)):
        Tensor.manual_seed(4)
        programs.forget()
        GlobalCounters.reset()
        GPT(GPTConfig(layers, 2, dim, 8, 11))
        found.append(GlobalCounters.programs_compiled)
    # six shapes of matrices, and all biases; one compiled program may serve several shapes
    assert found[0] == found[1] <= 7


def test_a_new_model_knows_nothing(model: GPT) -> None:
    """Its loss equals that of its logits. They are small: the product of a row of 16 numbers of
    size 1 (from a layer norm) with weights of size 0.02. A mean of 11 or more such logits is off by
    at most a third of that.
    """
    ids = some_ids(4, 8)
    logits = model(Tensor(ids))
    assert logits.shape == (4, 8, 11)
    loss = model.loss(Tensor(ids), Tensor((ids + 3) % 11))
    assert loss.shape == ()
    wide = logits.numpy().astype(np.float64)
    right = np.take_along_axis(wide, (ids[..., None] + 3) % 11, 2)[..., 0]
    assert loss.item() == pytest.approx((np.log(np.exp(wide).sum(2)) - right).mean(), rel=1e-6)
    size = 0.02 * np.sqrt(16)
    assert 0.5 * size < wide.std() < 1.5 * size
    assert loss.item() == pytest.approx(np.log(11), abs=size)


def test_no_position_sees_a_later_one(model: GPT) -> None:
    ids = some_ids(1, 8)
    other = ids.copy()
    other[0, 5:] = (ids[0, 5:] + 1) % 11
    before, after = model(Tensor(ids)).numpy(), model(Tensor(other)).numpy()
    assert np.abs(before[0, :5] - after[0, :5]).max() < 1e-6
    assert np.abs(before[0, 5:] - after[0, 5:]).min(axis=1).max() > 1e-6


def test_dropout_acts_in_training_only(device: str) -> None:
    with Context(DEVICE=device):
        Tensor.manual_seed(2)
        model = GPT(GPTConfig(1, 2, 16, 8, 11, dropout=0.5))
        ids = Tensor(some_ids(2, 8))
        assert (model(ids).numpy() == model(ids).numpy()).all()
        with Tensor.train():
            assert (model(ids).numpy() != model(ids).numpy()).any()


def test_too_long_an_input(model: GPT) -> None:
    with pytest.raises(ValueError, match="9 tokens are more than the model's context of 8"):
        model(Tensor(some_ids(1, 9)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"heads": 3}, "dim 128 is not a multiple of heads 3"),
     ({"layers": 0}, "layers: expected at least 1, got 0"),
     ({"vocabulary": -1}, "vocabulary: expected at least 1, got -1"),
     ({"dropout": 1.0}, "dropout: expected at least 0 and less than 1, got 1.0"),
     ({"key_heads": -1}, "key_heads: expected at least 0, got -1"),
     ({"balance": float("nan")}, "balance: expected at least 0, got nan"),
     ({"logit_cap": float("inf")}, "logit_cap: expected at least 0, got inf"),
     ({"norm": "none"}, "norm: expected layer or rms, got 'none'"),
     ({"key_heads": 3}, "heads 4 is not a multiple of key_heads 3"),
     ({"positions": "rotary", "rotary_share": 0.0}, "rotary_share: expected above 0, at most 1"),
     ({"positions": "rotary", "head_width": 5}, "need an even number of dims, got 5"),
     ({"positions": "rotary", "rotary_factors": (1.0,)}, "rotary_factors: expected 16, one for"),
     ({"layer_kinds": "fs"}, "expected 4 letters f, s or n"), ({"layer_kinds": "fffs"}, "sliding"),
     ({"epsilon": 0.0}, "epsilon: expected a number above 0, got 0.0"),
     ({"experts": 2, "activation": "geglu"}, "experts: expected gelu or swiglu, got"),
     ({"experts": 2, "active": 3}, "active: expected at most 2 experts, got 3")],
)  # fmt: skip
def test_inconsistent_configs(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPTConfig(**settings)
    with pytest.raises(ValueError, match="unknown preset 'gpt5'; known presets: mini, small, gpt2"):
        GPTConfig.preset("gpt5")


def greedy(model: GPT, ids: list[int], count: int) -> list[int]:
    """Generation written the slow way: the whole model on the whole window, no padding."""
    ids, context = list(ids), model.config.context
    start = max(len(ids) - context, 0)
    for _ in range(count):
        if len(ids) - start > context:
            start = len(ids) - context // 2
        logits = model(Tensor([ids[start:]])).numpy()
        ids.append(int(logits[0, -1].argmax()))
    return ids[-count:]


def test_generation_past_the_context(model: GPT) -> None:
    prompt = [3, 1, 4]
    wanted = greedy(model, prompt, 12)
    assert list(model.generate(prompt, 12, temperature=0)) == wanted
    assert prompt == [3, 1, 4]
    assert list(model.generate(Tensor(prompt), 12, temperature=0)) == wanted
    assert list(model.generate(np.array(prompt), 12, temperature=0)) == wanted


def test_generation_of_a_batch(model: GPT) -> None:
    prompts = [[3, 1, 4], [5], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8]]
    lists = list(model.generate(prompts, 6, temperature=0))
    for number, prompt in enumerate(prompts):
        assert [new[number] for new in lists] == greedy(model, prompt, 6)


def test_generation_follows_its_seed(model: GPT) -> None:
    first = list(model.generate([1], 20, seed=5))
    assert first == list(model.generate([1], 20, seed=5))
    assert first != list(model.generate([1], 20, seed=6))
    assert set(model.generate([1], 20, seed=5, top_k=1)) <= set(greedy(model, [1], 20))


def test_tokens_come_as_they_are_drawn(model: GPT) -> None:
    stream = model.generate([1], 1 << 40, seed=5)  # far too many to wait for
    assert [next(stream) for _ in range(3)] == list(model.generate([1], 3, seed=5))


def test_generation_stops(model: GPT) -> None:
    free = list(model.generate([1], 30, seed=5))
    stop = free[4]
    until = free[: free.index(stop) + 1]
    assert list(model.generate([1], 30, seed=5, stop=[stop])) == until
    lists = list(model.generate([[1], [1]], 30, seed=5, stop=[stop]))
    column = [new[0] for new in lists]
    assert column == until + [None] * (len(lists) - len(until))


def test_invalid_prompts(model: GPT) -> None:
    for prompt in ([], [[1], []]):
        with pytest.raises(ValueError, match="prompt: expected at least one token"):
            model.generate(prompt, 1)
    for wrong in ("text", [1.5], [[1], ["a"]]):
        with pytest.raises(ValueError, match="expected token ids, such as tokenizer"):
            model.generate(wrong, 1)  # type: ignore[arg-type]
    for token in (-1, 11):
        with pytest.raises(ValueError, match=r"vocabulary, 0 … 10, got"):
            model.generate([1, token], 1)
    with pytest.raises(ValueError, match="temperature: expected 0"):
        model.generate([1], 1, temperature=-1)


def test_training_learns_a_pattern(model: GPT, tmp_path: Path) -> None:
    ids = np.tile(np.array([1, 2, 3, 4, 5, 6, 7], np.int32), 40)
    windows = Windows(ids, TINY.context)
    plan = TrainingPlan(
        steps=60,
        batch=8,
        lr=1e-2,
        warmup=5,
        validate_every=25,
        validation_windows=8,
        final_windows=32,
    )
    path = tmp_path / "metrics.jsonl"
    with Metrics(str(path)) as metrics:
        loss = finish(TrainingRun(model, plan), windows, windows, metrics)
    assert loss < 0.4
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert all(set(line) == set(KEYS) for line in lines)
    assert [line["step"] for line in lines if line["val_loss"] is not None] == [25, 50, 60]
    assert lines[-1]["val_loss"] == loss == validate(model, windows, 32, 32)
    assert list(model.generate([1, 2, 3], 6, temperature=0)) == [4, 5, 6, 7, 1, 2]


def test_a_step_in_parts_computes_nothing_twice() -> None:
    config = replace(TINY, layers=3)  # new to these tests: other programs serve any batch
    windows, counts = Windows(some_ids(400).ravel(), config.context), []
    for parts in (1, 4):
        run = TrainingRun(GPT(config), TrainingPlan(batch=32, accumulate=parts))
        for _ in range(3):
            run.advance(windows)
        GlobalCounters.reset()
        run.advance(windows)
        counts.append(GlobalCounters.global_ops)
    # each part also adds to gradients; computing its loss twice would be a twelfth
    params = sum(int(p.numel()) for p in run.optimizer.params)
    assert counts[0] <= counts[1] <= counts[0] + 8 * params


def test_a_loss_that_is_no_number_ends_training(model: GPT) -> None:
    with Tensor.no_grad():
        model.wpe.weight.assign(float("nan"))
    windows, run = Windows(some_ids(50), TINY.context), TrainingRun(model, TrainingPlan(2, 2))
    with Metrics() as metrics, pytest.raises(InputError, match="the loss is nan at step 1"):
        finish(run, windows, windows, metrics)


def test_a_last_step_that_destroys_the_weights_is_an_error(model: GPT) -> None:
    windows = Windows(some_ids(50), TINY.context)
    run = TrainingRun(model, TrainingPlan(1, 2, lr=1e30, warmup=1))
    with Metrics() as metrics, pytest.raises(InputError, match="the loss is nan at step 1"):
        finish(run, windows, windows, metrics)


def test_the_learning_rate() -> None:
    rate = make_schedule(TrainingPlan(steps=2000, lr=3e-3, warmup=100))
    rates = [rate(step) for step in range(2000)]
    assert rates[0] == pytest.approx(3e-5) and rates[99] == pytest.approx(3e-3)
    assert max(rates) == pytest.approx(3e-3)
    assert rates[1050] == pytest.approx(3e-3 * 0.55, rel=1e-3)
    assert rates[-1] == pytest.approx(3e-4, rel=1e-3)
    for steps in range(1, 6):
        short = make_schedule(TrainingPlan(steps=steps))
        assert all(0 < short(step) <= 3e-3 for step in range(steps))


def test_only_matrices_decay(model: GPT) -> None:
    tensors = nn.state.get_state_dict(model)
    optimizer = MatrixAdamW(tensors.values(), TrainingPlan(lr=0.5, weight_decay=0.1))
    before = {name: tensor.numpy() for name, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.grad = Tensor.zeros(*tensor.shape)
    optimizer.step()
    for name, tensor in tensors.items():
        factor = 0.95 if tensor.ndim == 2 else 1.0
        assert np.allclose(tensor.numpy(), before[name] * factor, rtol=1e-6), name


def test_a_checkpoint_brings_the_model_back(model: GPT, tmp_path: Path) -> None:
    tokenizer = CharacterTokenizer("abcdefghijk")
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, tokenizer)
    again, same_tokenizer = load_checkpoint(GPT, path)
    assert again.config == TINY and same_tokenizer.vocabulary == tokenizer.vocabulary
    ids = Tensor(some_ids(2, 8))
    assert (again(ids).numpy() == model(ids).numpy()).all()
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]


SMALL = ("--layers", "1", "--heads", "2", "--dim", "16", "--context", "8", "--batch", "2")


def test_the_script_trains_and_writes(tmp_path: Path, device: str) -> None:
    (tmp_path / "text.txt").write_text("to be, or not to be: that is the question.\n" * 50)
    result = ended(
        SCRIPT, "--text", "text.txt", *SMALL, "--steps", "3", "--metrics", "m.jsonl", "--seed", "1",
        "--device", device, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "validation loss" in result.stdout and "checkpoint gpt.safetensors" in result.stdout
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 3
    assert (tmp_path / "gpt.png").read_bytes().startswith(b"\x89PNG")
    sample = result.stdout.split("nats per character\n\n")[1].split("\n\nsaved checkpoint")[0]
    assert 490 <= len(sample) <= 500

    arguments = ("sample", "--prompt", "to be", "--tokens", "9", "--seed", "3", "--device", device)
    written = [ended(SCRIPT, *arguments, cwd=tmp_path) for _ in range(2)]
    assert written[0].returncode == 0, written[0].stderr
    assert written[0].stdout.startswith("to be") and len(written[0].stdout) == 5 + 9 + 1
    assert written[0].stdout == written[1].stdout


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    for command, text in COMMANDS.items():
        with pytest.raises(SystemExit):
            gpt_commands.main([command, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert "--seed" in said and text[1:] in said  # names keep their capitals
        chosen = gpt_commands.parser()._subparsers._group_actions[0].choices[command]
        assert all(action.help for action in chosen._actions)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "a share of a layer": (lambda: GPTConfig(layers=1.5), "GPTConfig(layers=1.5): expected an int"),  # type: ignore[arg-type]
    "a bias of text": (lambda: GPTConfig(bias="no"), "GPTConfig(bias='no'): expected True or"),  # type: ignore[arg-type]
    "no tokens": (lambda: GPT(TINY)(Tensor([1, 2])), "expected a tensor of integers (batch, "),
    "a text": (lambda: GPT(TINY)("hello"), "GPT: expected a tensor of integers (batch"),  # type: ignore[arg-type]
    "half a token": (lambda: _drawn(max_new_tokens=2.5), "generate(max_new_tokens=2.5): expected"),
    "fewer than none": (lambda: _drawn(max_new_tokens=-1), "(max_new_tokens=-1): expected at"),
    "a seed of text": (lambda: _drawn(seed="a"), "generate(seed='a'): expected an int"),
    "a stop of one": (lambda: _drawn(stop=5), "generate(stop=5): expected a collection"),
    "a prompt of one": (lambda: _drawn(ids=5), "prompt: expected token ids, such as"),
    "k of a half": (lambda: _drawn(top_k=2.5), "Sampling(top_k=2.5): expected an int"),
    "hot": (lambda: _drawn(temperature="hot"), "Sampling(temperature='hot'): expected a number"),
    "a text of 5": (lambda: CharacterTokenizer("ab").encode(5), "text: expected a str, got 5"),  # type: ignore[arg-type]
    "a text as tokens": (lambda: CharacterTokenizer("ab").decode("a"), "token: expected an int"),  # type: ignore[arg-type]
}


def _drawn(**options: Any) -> list[int]:
    return list(GPT(TINY).generate(**{"ids": [1], "max_new_tokens": 1, **options}))


@pytest.mark.parametrize("name", WRONG)
def test_what_a_program_gives_wrongly(name: str) -> None:
    """Python named something internal, or there was no error."""
    call, words = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        call()


def test_in_mixed_precision_a_bias_has_the_rounded_gradient() -> None:
    rng = np.random.default_rng(3)
    x, weight, bias, slope = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((7, 4), (5, 4), (5,), (7, 5))
    )
    own, rounded = Tensor(bias), slope.astype(ml_dtypes.bfloat16).astype(np.float32)
    for precision, expected in ((dtypes.bfloat16, rounded), (dtypes.float32, slope)):
        y = product(Tensor(x), Tensor(weight), precision, own)
        (found,) = (y * Tensor(slope)).sum().gradient(own)
        np.testing.assert_allclose(found.numpy(), expected.sum(0), rtol=1e-6)


def test_attention_multiplies_in_the_models_precision() -> None:
    """Queries, keys and values are rounded in a pass without a cache; a cache holds float32."""
    Tensor.manual_seed(1)
    attention = Attention(GPTConfig(1, 2, 32, 16, 13, precision="bfloat16"))
    x = Tensor.rand(1, 16, 32)
    exact = attention.heads(x)
    assert all(one.dtype is dtypes.float32 for one in exact)
    outputs = []
    for q, k, v in (exact, (one.cast(dtypes.bfloat16) for one in exact)):
        y = q.scaled_dot_product_attention(k, v, is_causal=True)
        outputs.append(attention.c_proj(y.transpose(1, 2).reshape(1, 16, 32)).numpy())
    found = attention(x).numpy()
    away = [np.abs(found - output).max() for output in outputs]
    assert away[1] < 0.1 * away[0]
