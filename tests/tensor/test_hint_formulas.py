"""The replacements that hints.md tells users to type compute what PyTorch's functions compute."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, nn
from minigrad.hints import table

X, POSITIVE = (3, 4), np.linspace(0.1, 2.9, 12, dtype=np.float32).reshape(3, 4)
HOLES = np.array([1, 2, np.nan, 3, 0], np.float32)
SIGNS = np.array([1, -1, 1], np.float32)

# The call that users type, the same in PyTorch, and the names in it: shapes, arrays or numbers.
FORMULAS: list[tuple[str, str, dict[str, Any]]] = [
    ("x.angle()", "torch.angle(x)", {"x": X}),
    ("x.isreal()", "torch.isreal(x)", {"x": X}),
    ("x.choose([x])", "torch.stack(choices).gather(0, x[None])[0]",
     {"x": np.array([0, 1, 1, 0]), "choices": [(4,), (4,)]}),
    ("x.erfc()", "torch.erfc(x)", {"x": X}),
    ("x.trapezoid()", "torch.trapezoid(x, dx=dx)", {"x": X, "dx": 0.5}),
    ("x.cumulative_trapezoid()", "torch.cumulative_trapezoid(x, dx=dx)", {"x": X, "dx": 0.5}),
    ("x.renorm(2, 0, 1.0)", "x.renorm(p, 1, maxnorm)", {"x": X, "p": 3, "maxnorm": 1, "axes": 0}),
    ("x.msort()", "x.msort()", {"x": X}),
    ("x.unique_consecutive()", "x.unique_consecutive()", {"x": np.array([1, 1, 2, 3, 3, 1])}),
    ("x.corrcoef()", "x.corrcoef()", {"x": X}),
    ("x.nanmedian()", "x.nanmedian()", {"x": HOLES}),
    ("x.nanquantile(0.5)", "x.nanquantile(q)", {"x": HOLES, "q": 0.3}),
    ("x.nansum()", "x.nansum()", {"x": HOLES}),
    ("x.nanmean()", "x.nanmean()", {"x": HOLES}),
    ("x.dist(x)", "x.dist(y, p)", {"x": X, "y": X, "p": 3}),
    ("x.mvlgamma(2)", "x.mvlgamma(p)", {"x": POSITIVE + 1, "p": 3}),
    ("x.float_power(2)", "x.float_power(y)", {"x": POSITIVE, "y": 2.5}),
    ("x.logaddexp2(x)", "x.logaddexp2(y)", {"x": X, "y": X}),
    ("x.sinc()", "x.sinc()", {"x": np.array([0, 0.5, -1.5], np.float32)}),
    ("x.ldexp(x)", "x.ldexp(y)", {"x": X, "y": X}),
    ("x.diagonal_scatter(x)", "x.diagonal_scatter(src)", {"x": (3, 3), "src": (3,), "n": 3}),
    ("x.put(x, x)", "x.put(index, source)",
     {"x": X, "index": np.array([1, 5]), "source": (2,)}),
    ("x.diagflat()", "x.diagflat()", {"x": X}),
    ("x.addmv(x, x)", "x.addmv(mat, vec)", {"x": (3,), "mat": X, "vec": (4,)}),
    ("x.addr(x, x)", "x.addr(a, b)", {"x": X, "a": (3,), "b": (4,)}),
    ("x.addbmm(x, x)", "x.addbmm(a, b)", {"x": X, "a": (5, 3, 2), "b": (5, 2, 4)}),
    ("x.baddbmm(x, x)", "x.baddbmm(a, b)", {"x": (5, 3, 4), "a": (5, 3, 2), "b": (5, 2, 4)}),
    ("x.channel_shuffle(2)", "F.channel_shuffle(x, groups)", {"x": (2, 6, 2, 2), "groups": 2}),
    ("x.pdist()", "F.pdist(x)", {"x": X, "n": 3}),
    ("x.frac()", "x.frac()", {"x": X}),
    ("x.deg2rad()", "x.deg2rad()", {"x": X}),
    ("x.rad2deg()", "x.rad2deg()", {"x": X}),
    ("x.logit()", "x.logit()", {"x": POSITIVE / 3}),
    ("x.xlogy(x)", "x.xlogy(y)", {"x": np.array([0, 0, 2.0]), "y": np.array([0, 2, 3.0])}),
    ("x.heaviside(x)", "x.heaviside(v)", {"x": SIGNS - 1, "v": (3,)}),
    ("x.logcumsumexp(0)", "x.logcumsumexp(0)", {"x": X}),
    ("x.logspace(0, 1, 5)", "torch.logspace(start, stop, steps)",
     {"start": 0, "stop": 2, "steps": 5}),
    ("x.bucketize(x)", "torch.bucketize(x, edges)", {"x": X, "edges": np.array([-1, 0, 1.0])}),
    ("x.row_stack(x)", "torch.vstack([a, b])", {"a": X, "b": X}),
    ("x.softmin(1)", "F.softmin(x, 1)", {"x": X}),
    ("x.celu()", "F.celu(x, alpha)", {"x": X, "alpha": 1.5}),
    ("x.softsign()", "F.softsign(x)", {"x": X}),
    ("Tensor.atleast_3d(x)", "torch.atleast_3d(x)", {"x": X}),
    ("Tensor.atleast_3d(x)", "torch.atleast_3d(x)", {"x": (2, 3, 4)}),
    ("Tensor.cartesian_prod(x, x)", "torch.cartesian_prod(a, b)", {"a": (3,), "b": (2,)}),
    ("Tensor.vander(x)", "torch.vander(x)", {"x": (4,), "n": 4}),
    ("F.bilinear(x)", "F.bilinear(x1, x2, weight, bias)",
     {"x1": (5, 3), "x2": (5, 4), "weight": (2, 3, 4), "bias": (2,)}),
    ("F.local_response_norm(x)", "F.local_response_norm(x, n, alpha, beta, k)",
     {"x": (2, 6, 3, 3), "n": 3, "alpha": 0.1, "beta": 0.75, "k": 1.0}),
    ("F.lp_pool1d(x)", "F.lp_pool1d(x, p, kernel)", {"x": (1, 3, 6), "p": 3, "kernel": 2}),
    ("F.gaussian_nll_loss(x)", "F.gaussian_nll_loss(x, target, var)",
     {"x": X, "target": X, "var": POSITIVE}),
    ("F.hinge_embedding_loss(x)", "F.hinge_embedding_loss(x, target, margin)",
     {"x": (3,), "target": SIGNS, "margin": 0.7}),
    ("F.soft_margin_loss(x)", "F.soft_margin_loss(x, target)", {"x": (3,), "target": SIGNS}),
    ("F.multilabel_soft_margin_loss(x)", "F.multilabel_soft_margin_loss(x, target)",
     {"x": X, "target": (POSITIVE > 1).astype(np.float32)}),
    ("F.multi_margin_loss(x)", "F.multi_margin_loss(x, t, margin=margin)",
     {"x": X, "t": np.array([0, 3, 1]), "margin": 0.7, "classes": 4}),
    ("F.cosine_embedding_loss(x, x, x)", "F.cosine_embedding_loss(x, y, t, margin)",
     {"x": X, "y": X, "t": SIGNS, "margin": 0.2}),
    ("linalg.matrix_exp(x)", "torch.linalg.matrix_exp(x)", {"x": np.eye(3) + 0.5}),
    ("linalg.multi_dot([x])", "torch.linalg.multi_dot([a, b, c])",
     {"a": X, "b": (4, 3), "c": (3, 2)}),
]  # fmt: skip
SAID = r"^all dtypes are real: |^x\.where\(a, b\), or |,? (of|the) .*"  # words around the formula


@pytest.mark.parametrize(("typed", "theirs", "names"), FORMULAS)
def test_formula(typed: str, theirs: str, names: dict[str, Any], cpu: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    draw = np.random.default_rng(1)

    def array(given: Any, make: Any) -> Any:
        """A tensor of a library, of a shape or an array; a list of them; other values unchanged."""
        if isinstance(given, list):
            return [array(one, make) for one in given]
        if isinstance(given, tuple):
            given = draw.normal(size=given).astype(np.float32)
        return make(given) if isinstance(given, np.ndarray) else given

    arrays = {name: array(given, np.asarray) for name, given in names.items()}
    with minigrad.Context(DEVICE=cpu):
        ours = {name: array(given, Tensor) for name, given in arrays.items()}
        ours |= {"Tensor": Tensor, "F": nn.functional, "nn": nn, "math": math, "minigrad": minigrad}
        *steps, last = re.sub(SAID, "", table()[typed]).split("; ")
        exec("; ".join(steps), ours)
        found = eval(last, ours).numpy()
    other = {name: array(given, torch.tensor) for name, given in arrays.items()}
    expected = eval(theirs, other | {"torch": torch, "F": torch.nn.functional}).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
