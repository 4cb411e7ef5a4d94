"""Random small networks of images give PyTorch's values. See `networks` for the command."""

from __future__ import annotations

import pytest
from hypothesis import settings

from minigrad.nn import functional

from .networks import failure_of

pytest.importorskip("torch", reason="PyTorch is not installed")

NETWORKS = 10 if settings().max_examples <= 20 else 500


def test_networks(compiled: str) -> None:
    """The seeds are the same in every run."""
    found = [text for seed in range(NETWORKS) if (text := failure_of(seed, compiled))]
    assert not found, "\n\n".join(found[:2])


def test_a_difference_is_noticed(compiled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the gradients, too, which here are half as large as they should be."""
    conv2d = functional.conv2d
    monkeypatch.setattr(functional, "conv2d", lambda x, *given, **options: conv2d(
        (x + x.detach()) / 2, *given, **options
    ))  # fmt: skip
    assert any(failure_of(seed, compiled) for seed in range(30))
