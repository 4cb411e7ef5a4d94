"""What PyTorch says where the operation table (tests/property) does not: dtypes that meet, numbers
in place of tensors, names and forms of arguments, and what losses leave out.

Each line is an expression, evaluated once with minigrad's tensors and once with PyTorch's; where
the two are written differently, ours stands before "::", after which a line may be broken. The
expressions follow PyTorch's public documentation. A leading "!" compares values only: gradients
differ by convention (ties), or the result has none. All of a family's results are realized in one
program.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from minigrad import Tensor, dtypes
from minigrad.errors import GradientError

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional

FAMILIES = {
    "dtypes together": """
        i + x
        i + d
        x + d
        h + 1
        h * x
        b + i
        b * x
        a + 1
        a + i
        i * 2.5
        i / j
        i.div(j)
        i.div(j, rounding_mode="floor")
        i.div(j, rounding_mode="trunc")
        a < i
        b & (x > 0)
        b.where(i, x) :: torch.where(b, i, x)
        i.half()
        i.bitcast(float32) :: i.view(float32)
        x.softmax(1, dtype=float64)
        x.cat(i, dim=1) :: torch.cat([x, i], 1)
        x.scatter_add(1, j % 4, y) :: x.scatter_add(1, (j % 4).long(), y)
        x[k]
        t[k % 2, :, k]
        Tensor.ones(2, 3, dtype=int32) :: torch.ones(2, 3, dtype=int32)
        Tensor.full((2,), True) :: torch.full((2,), True)
        Tensor([1, 2]) :: torch.tensor([1, 2])
        Tensor([[1.5], [2]]) :: torch.tensor([[1.5], [2]])
        Tensor([True, False]) :: torch.tensor([True, False])
        Tensor(3.5) :: torch.tensor(3.5)
    """,
    "numbers in place of tensors": """
        x + 2
        a * 2
        !x // 2
        a & 6
        x <= 0
        0 < x
        x ** 2
        x ** 3
        j ** 2
        p ** 0.5
        p ** -0.5
        x.lerp(y, 0.25)
        b.where(x, 0.5) :: torch.where(b, x, 0.5)
        x.masked_fill(x > 0, float("-inf"))
        x.scatter(1, k.reshape(3, 1), 9.0)
    """,
    "names and forms of arguments": """
        x.clamp(min=0.1)
        x.clamp(max=0.1)
        x.sum(dim=1)
        x.permute(1, 0)
        v.expand(3, 4)
        x.repeat(2, 3)
        x.flip(0)
        x.cat(y) :: torch.cat([x, y])
        x.pad((-1, 2, 0, -1)) :: F.pad(x, (-1, 2, 0, -1))
        img.pad((1, 2, 3, 0), mode="reflect") :: F.pad(img, (1, 2, 3, 0), mode="reflect")
        x.cummax(1) :: tuple(x.cummax(1))
        t.scaled_dot_product_attention(t, t, tri) :: sdpa(t, t, t, tri)
        t.scaled_dot_product_attention(t, t, scale=0.3) :: sdpa(t, t, t, scale=0.3)
        t.layernorm((1, 2), 1e-3) :: F.layer_norm(t, (3, 4), eps=1e-3)
        x.rmsnorm(eps=1e-6, weight=v) :: F.rms_norm(x, (4,), v, 1e-6)
        img.conv2d(w, padding="same") :: F.conv2d(img, w, padding="same")
        img.conv2d(w, padding="valid") :: F.conv2d(img, w, padding="valid")
        img.conv2d(w, padding=(1, 2, 3, 0)) :: F.conv2d(F.pad(img, (1, 2, 3, 0)), w)
        img[0].conv2d(w, c4) :: F.conv2d(img[0], w, c4)
        img.max_pool2d(3, 2, return_indices=True) :: F.max_pool2d(img, 3, 2, return_indices=True)
        img[..., :6].max_unpool2d(places, 2) :: F.max_unpool2d(img[..., :6], places.long(), 2)
        img.interpolate(scale_factor=2) :: F.interpolate(img, scale_factor=2)
        img.interpolate(scale_factor=(1.5, 0.7)) :: F.interpolate(img, scale_factor=(1.5, 0.7))
        img.interpolate(scale_factor=1.7, mode="bilinear") ::
            F.interpolate(img, scale_factor=1.7, mode="bilinear")
        img[:, :, None].interpolate((2, 3, 9), mode="trilinear") ::
            F.interpolate(img[:, :, None], (2, 3, 9), mode="trilinear")
    """,
    "large and special values": """
        z.argmax(1)
        z.sigmoid()
        (x * 50).logsumexp(1)
        (x * 50).log_softmax(1)
        (x * b).prod(1)
    """,
    "losses": """
        x.cross_entropy(k, ignore_index=1) :: F.cross_entropy(x, k, ignore_index=1)
        x.cross_entropy(ign) :: F.cross_entropy(x, ign)
        x.cross_entropy(ign, label_smoothing=0.2) :: F.cross_entropy(x, ign, label_smoothing=0.2)
        x.cross_entropy(ign, reduction="none") :: F.cross_entropy(x, ign, reduction="none")
        x.cross_entropy(y.softmax(1), label_smoothing=0.1) ::
            F.cross_entropy(x, y.softmax(1), label_smoothing=0.1)
        x.cross_entropy(y.softmax(1), reduction="sum") ::
            F.cross_entropy(x, y.softmax(1), reduction="sum")
        img.cross_entropy(lab) :: F.cross_entropy(img, lab)
        x.log_softmax(1).nll_loss(k, weight=v.square()) ::
            F.nll_loss(x.log_softmax(1), k, weight=v.detach().square())
        x.log_softmax(1).nll_loss(k, v.square(), 1) ::
            F.nll_loss(x.log_softmax(1), k, v.detach().square(), ignore_index=1)
        x.log_softmax(1).nll_loss(ign) :: F.nll_loss(x.log_softmax(1), ign)
        img.log_softmax(1).nll_loss(lab) :: F.nll_loss(img.log_softmax(1), lab)
        x.binary_crossentropy_logits(y.sigmoid(), pos_weight=v.square()) ::
            bce_logits(x, y.sigmoid(), pos_weight=v.detach().square())
    """,
}


def _inputs():
    g = np.random.default_rng(5)

    def normal(*shape):
        return g.standard_normal(shape).astype(np.float32)

    positive = g.uniform(0.2, 3, (3, 4)).astype(np.float32)
    odd = normal(3, 4)
    odd.flat[[0, 3, 5, 6]] = np.nan, np.inf, -np.inf, -0.0
    return {
        "x": normal(3, 4), "y": normal(3, 4), "t": normal(2, 3, 4), "v": normal(4), "p": positive,
        "z": odd, "d": g.standard_normal((3, 4)), "h": normal(3, 4).astype(np.float16),
        "i": g.integers(-9, 10, (3, 4)).astype(np.int32),
        "j": g.integers(1, 6, (3, 4)).astype(np.int32),
        "k": np.array([2, 0, 1]), "b": g.integers(0, 2, (3, 4)).astype(bool),
        "a": g.integers(0, 200, (3, 4)).astype(np.uint8), "tri": np.tri(3, dtype=bool),
        "img": normal(2, 3, 6, 7), "w": normal(4, 3, 3, 3), "c4": normal(4),
        "lab": g.integers(0, 3, (2, 6, 7)), "ign": np.array([2, -100, 1]),
        "places": g.permuted(np.tile(np.arange(144), (2, 3, 1)), axis=-1)[..., :36]
        .reshape(2, 3, 6, 6).astype(np.int32),
    }  # fmt: skip


INPUTS = _inputs()
NAMES = ("float16", "float32", "float64", "int32", "int64")


def tensors(make):
    return {
        name: make(value, value.dtype.kind == "f" and name != "z") for name, value in INPUTS.items()
    }


def torch_tensor(value, wants_gradient):
    return torch.from_numpy(np.array(value)).requires_grad_(wants_gradient)


def ours_tensor(value, wants_gradient):
    return Tensor(value, requires_grad=wants_gradient)


def as_list(value):
    return list(value) if isinstance(value, (tuple, list)) else [value]


def cases(text):
    for line in re.sub(r"::\n\s*", ":: ", text.strip()).splitlines():
        ours, _, theirs = line.strip().partition(" :: ")
        yield ours.removeprefix("!"), theirs or ours.removeprefix("!"), line.strip()[0] != "!"


def array(tensor):
    tensor = tensor.detach()
    return tensor.float().numpy() if str(tensor.dtype) == "torch.bfloat16" else tensor.numpy()


def same_dtype(found, wanted):
    """Positions are int32 here, sums of unsigned integers uint64 (as numpy's); int64 in PyTorch."""
    wide = {"int64": ("int64", "int32", "uint64")}
    return found in wide.get(wanted, (wanted,))


def difference(name, found, wanted):
    if found.shape != wanted.shape:
        return f"{name}: shape {found.shape}, PyTorch's {wanted.shape}"
    half = wanted.dtype == np.float16
    tolerance = {"rtol": 4e-3, "atol": 4e-3} if half else {"rtol": 2e-4, "atol": 2e-5}
    try:
        np.testing.assert_allclose(
            found.astype(np.float64), wanted.astype(np.float64), **tolerance
        )
    except AssertionError as error:
        return f"{name}: {str(error).strip()[:400]}"
    return None


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, on_device):
    problems, waiting, checks = [], [], []
    theirs_in = tensors(torch_tensor)
    theirs_scope = {
        "torch": torch, "F": F, "sdpa": F.scaled_dot_product_attention,
        "bce_logits": F.binary_cross_entropy_with_logits,
        "float": float, "tuple": tuple,
        **{name: getattr(torch, name) for name in NAMES}, **theirs_in,
    }  # fmt: skip
    ours_in = tensors(ours_tensor)
    ours_scope = {
        "Tensor": Tensor, "float": float,
        **{name: getattr(dtypes, name) for name in NAMES}, **ours_in,
    }  # fmt: skip
    for number, (ours, theirs, differentiable) in enumerate(cases(FAMILIES[family])):
        wanted = as_list(eval(theirs, theirs_scope))
        try:
            found = as_list(eval(ours, ours_scope))
            if len(found) != len(wanted):
                problems.append(f"{ours}: {len(found)} results, PyTorch {len(wanted)}")
                continue
            for f, w in zip(found, wanted, strict=True):
                kind = str(w.dtype).removeprefix("torch.")
                if not same_dtype(f.dtype.name, kind):
                    problems.append(f"{ours}: {f.dtype.name}, PyTorch {kind}")
                waiting.append(f)
                checks.append((ours, f, array(w)))
            if differentiable and any(w.requires_grad for w in wanted):
                _gradients(number, ours, found, wanted, ours_in, theirs_in, waiting, checks)
        except Exception as error:
            problems.append(f"{ours}: {type(error).__name__}: {error}")
    Tensor.realize(*waiting)
    for name, tensor, value in checks:
        found = tensor.float().numpy() if tensor.dtype is dtypes.bfloat16 else tensor.numpy()
        problem = difference(name, found, value)
        if problem:
            problems.append(problem)
    assert not problems, "\n".join([f"{len(problems)} differences", *problems])


def _gradients(number, name, found, wanted, ours_in, theirs_in, waiting, checks):
    """Gradients of a weighted sum of all float results, with respect to what it depends on."""
    generator = np.random.default_rng(number)
    loss, total = None, None
    for f, w in zip(found, wanted, strict=True):
        if not w.requires_grad:
            continue
        weights = generator.standard_normal(tuple(w.shape))
        kind = str(array(w).dtype)
        mine = (f * Tensor(weights.astype(kind))).sum().double()
        its = (w * torch.from_numpy(np.asarray(weights.astype(kind)))).sum().double()
        loss = mine if loss is None else loss + mine
        total = its if total is None else total + its
    names = [n for n, tensor in theirs_in.items() if tensor.requires_grad]
    grads = torch.autograd.grad(total, [theirs_in[n] for n in names], allow_unused=True)
    used = [(n, g) for n, g in zip(names, grads, strict=True) if g is not None]
    for n, wanted_grad in used:
        try:
            (grad,) = loss.gradient(ours_in[n])
        except GradientError:  # PyTorch gives zeros where a derivative is 0 everywhere
            grad = ours_in[n].detach() * 0
        waiting.append(grad)
        checks.append((f"d({name})/d{n}", grad, array(wanted_grad)))


PROMOTIONS = (
    "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "bool",
)  # fmt: skip


@pytest.mark.parametrize("left", PROMOTIONS)
def test_promotion(left):
    for right in PROMOTIONS:
        ours = (Tensor.ones(2, dtype=left) * Tensor.ones(2, dtype=right)).dtype.name
        theirs = (
            torch.ones(2, dtype=getattr(torch, left)) * torch.ones(2, dtype=getattr(torch, right))
        ).dtype
        assert f"torch.{ours}" == str(theirs), (left, right)
    for scalar in (2, 2.5, True):
        ours = (Tensor.ones(2, dtype=left) * scalar).dtype.name
        theirs = str((torch.ones(2, dtype=getattr(torch, left)) * scalar).dtype)
        wide = theirs.replace("int64", "int32") if left == "bool" else theirs  # our default int
        assert f"torch.{ours}" == wide, (left, scalar)
