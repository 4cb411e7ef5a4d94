"""A line fitted by gradient descent: its result, its noise, and the cost of blind perturbation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minigrad.models import regression
from minigrad.models.errors import InputError
from minigrad.models.regression import RATES, best, descend, gradient_noise, points


def test_least_squares_and_three_rates() -> None:
    data = points(100, 0.3, 1)
    k1, k0 = np.polyfit(data.x.astype(np.float64), data.y.astype(np.float64), 1)
    assert best(data) == pytest.approx((k0, k1), rel=1e-4)
    ends = {name: descend(data, rate, 40, (-2.0, -2.0)) for name, rate in RATES.items()}
    assert ends["arrives"][-1][:2] == pytest.approx([k0, k1], abs=1e-3)
    first = ends["arrives"][0][2]
    error = -2 - 2 * data.x.astype(np.float64) - data.y
    assert first == pytest.approx((error**2).mean(), rel=1e-5)
    step = [-2 - 0.3 * 2 * error.mean(), -2 - 0.3 * 2 * (error * data.x).mean()]
    assert ends["arrives"][1][:2] == pytest.approx(step, rel=1e-5)
    assert ends["arrives"][-1][2] < ends["crawls"][-1][2] < first < ends["overshoots"][-1][2]


def test_noise_falls_with_the_root_of_the_batch() -> None:
    """The noise of a batch size is that of single points over the size's root. A mean of n squares
    is off by their standard deviation over √n; its root, relatively, by half of that.
    """
    data, draws = points(500, 0.5, 2), 10_000
    x, y = data.x.astype(np.float64), data.y.astype(np.float64)
    each = -2 * y[:, None] * np.stack([np.ones_like(x), x], 1)  # at (0, 0), by k0 and by k1
    squares = ((each - each.mean(0)) ** 2).sum(1)
    off = 0.5 * squares.std() / squares.mean() / np.sqrt(draws)  # less for larger batches
    noise = gradient_noise(data, draws, 0)
    assert len(noise) > 3
    for size, found in noise:
        assert found == pytest.approx(np.sqrt(squares.mean() / size), rel=4 * off), size


def test_blind_perturbation_finds_the_same_direction() -> None:
    result = regression.perturb_or_propagate((6, 4, 3), 8, 0)
    assert result.parameters == 6 * 4 + 4 + 4 * 3 + 3
    assert result.cosine > 0.999


def test_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                    capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    few = regression.perturb_or_propagate
    monkeypatch.setattr(regression, "perturb_or_propagate", lambda sizes, *rest: few((5, 3), *rest))
    picture = tmp_path / "r.png"
    regression.main(["--picture", str(picture), "--steps", "5", "--points", "20"])
    said = capsys.readouterr().out
    assert "overshoots" in said and "batch    1" in said and "18 forward passes" in said
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_picture_path_is_checked_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(regression, "points", lambda *_: pytest.fail("it computed"))
    with pytest.raises(InputError, match=r"cannot write /nope/x.png: there is no folder /nope"):
        regression.main(["--picture", "/nope/x.png"])
    assert capsys.readouterr().out == ""


def test_help_is_printed() -> None:
    said = " ".join(regression.parser().format_help().split())
    for phrase in (
        "points to fit the line to",
        "standard deviation of the points from the true line",
        "steps of gradient descent",
    ):
        assert phrase in said
