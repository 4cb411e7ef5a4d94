"""Pictures: the labels of their axes, and that drawing them prints no warnings."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minigrad import Tensor
from minigrad.models import pictures
from minigrad.models.digits import FASHION, Digits
from minigrad.models.errors import InputError
from minigrad.models.metrics import Metrics
from minigrad.models.mlp import MLP

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures, kept instead of being written to files; a warning is an error."""
    figures: list[Any] = []

    def keep(figure: Any, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            FigureCanvasAgg(figure).draw()
        figures.append(figure)

    monkeypatch.setattr(pictures, "save_figure", keep)
    return figures


def attention(count: int) -> Any:
    """Each token attends equally to itself and all tokens before it."""
    return np.tril(np.ones((count, count))) / np.arange(1, count + 1)[:, None]


def labels(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


@pytest.mark.parametrize(("count", "every"), [(1, 1), (60, 1), (61, 2), (200, 4)])
def test_labels_do_not_overlap(count: int, every: int, drawn: list[Any]) -> None:
    names = [f"word{number}" for number in range(count)]
    pictures.draw_attention(attention(count), names, Path("none"), "title")
    axes, _ = drawn[0].axes
    assert labels(axes.xaxis) == labels(axes.yaxis) == names[::every]
    assert list(axes.get_xticks()) == list(range(count))[::every]
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(one.y0 >= after.y1 for one, after in pairwise(boxes))


def test_the_first_token_does_not_set_the_scale(drawn: list[Any]) -> None:
    weights = np.full((10, 10), 0.1)
    weights[0] = np.eye(10)[0]
    pictures.draw_attention(weights, ["a"] * 10, Path("none"), "title")
    scale = drawn[0].axes[0].images[0].norm
    assert scale.vmax == pytest.approx(0.1)
    assert scale(0.025) == pytest.approx(0.5)


def test_later_tokens_are_masked(drawn: list[Any]) -> None:
    pictures.draw_attention(attention(4), ["a"] * 4, Path("none"), "title")
    shown = drawn[0].axes[0].images[0].get_array()
    assert shown.mask.tolist() == np.triu(np.ones((4, 4), bool), 1).tolist()


def test_tokens_that_the_font_lacks_are_escaped(drawn: list[Any]) -> None:
    names = ["'你'", "'日本'", "'é'", "'$x$'"]
    pictures.draw_attention(attention(4), names, Path("none"), "title")
    shown = labels(drawn[0].axes[0].xaxis)
    assert shown == [r"'\u4f60'", r"'\u65e5\u672c'", "'é'", r"'\$x\$'"]


def record(count: int, loss: Any) -> Metrics:
    metrics = Metrics()
    for step in range(1, count + 1):
        metrics.record(step=step, loss=loss(step))
    return metrics


def figure_of(count: int, drawn: list[Any]) -> Any:
    digits = Digits(np.ones((1, 784), np.float32), np.zeros(1, np.int32))
    pictures.draw_mlp(MLP(), digits, record(count, lambda step: 1 / step), Path("none"))
    return drawn[-1]


@pytest.mark.parametrize(("count", "lines"), [(8, 2), (79, 2), (80, 3), (400, 3)])
def test_a_short_run_has_no_mean(count: int, lines: int, drawn: list[Any]) -> None:
    axes = figure_of(count, drawn).axes[-1]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(names) == lines and not any("of 1 " in name for name in names)
    assert all(tick == int(tick) for tick in axes.get_xticks())


def test_the_mean_is_centred(drawn: list[Any]) -> None:
    pictures.save_curves(record(400, lambda step: 500.0 - step), Path("none"), "falling")
    losses, mean, _ = drawn[-1].axes[0].lines
    assert mean.get_ydata() == pytest.approx(losses.get_ydata()[5:-5])
    assert list(mean.get_xdata()) == list(losses.get_xdata()[5:-5])


def test_neurons_have_numbers_and_bars_have_names(drawn: list[Any]) -> None:
    axes = figure_of(8, drawn).axes
    titles = [each.get_title().removesuffix(", dead") for each in axes[:16]]
    assert titles == [f"neuron {n}" for n in range(16)]
    bars = [(each.get_xlabel(), each.get_ylabel()) for each in axes[17:20]]
    assert bars == [("activation", "neuron")] * 2 + [("probability", "digit")]


def test_classes_have_their_names(drawn: list[Any]) -> None:
    clothes = Digits(np.ones((1, 784), np.float32), np.full(1, 9, np.int32), FASHION)
    pictures.draw_mlp(MLP(), clothes, record(8, lambda step: 1 / step), Path("none"))
    image, *_, output, _ = drawn[0].axes[16:]
    assert image.get_title() == "ankle boot" and output.get_ylabel() == ""
    assert [text.get_text() for text in output.get_yticklabels()] == list(FASHION)


def test_a_neuron_that_no_digit_excites_is_called_dead(drawn: list[Any]) -> None:
    model, digits = MLP(), Digits(np.ones((2, 784), np.float32), np.zeros(2, np.int32))
    sums = np.ones(16, np.float32)
    sums[[2, 9]] = -1
    with Tensor.no_grad():
        model.layers[0].weight.assign(Tensor.zeros(16, 784))
        model.layers[0].bias.assign(Tensor(sums))
    pictures.draw_mlp(model, digits, record(8, lambda step: 1 / step), Path("none"))
    titles = [axes.get_title() for axes in drawn[0].axes[:16]]
    assert [n for n, title in enumerate(titles) if title.endswith(", dead")] == [2, 9]


def test_a_neuron(drawn: list[Any], on_device: str) -> None:
    pictures.draw_neuron(Path("none"))
    left, right = drawn[0].axes
    assert left.get_title() == "sum − threshold = 0.55: active"
    assert [text.get_text() for text in left.texts] == ["+1.35", "−0.20", "+0.40", "1.55"]
    names = [text.get_text() for text in right.get_legend().get_texts()]
    assert names[:2] == ["sigmoid: 0.634", "relu: 0.550"]


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    pictures.check_picture(None)
    pictures.check_picture(str(tmp_path / "x.png"))
    assert not list(tmp_path.iterdir())
    folder = tmp_path / "folder.png"
    folder.mkdir()
    for path in (tmp_path / "none" / "x.png", folder):
        with pytest.raises(InputError, match="cannot write"):
            pictures.check_picture(str(path))
