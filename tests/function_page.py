"""minigrad/functions.md: every function that PyTorch and tinygrad document, and where it is here.

    python tests/function_page.py     # rewrite the page

`functions.txt` lists the names. Each is here under the same name and meaning, or in another way
(`DIFFERENT` below and minigrad/hints.md say how), or not (`ABSENT` says why).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from minigrad import Tensor, linalg, nn
from minigrad.hints import OWNERS, table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "minigrad" / "functions.md"
F = nn.functional

# Where a namespace's names are searched, and how users write the names found there.
PLACES: dict[str, list[tuple[str, Any]]] = {
    "torch": [("Tensor", Tensor), ("F", F)],
    "torch.Tensor": [("Tensor", Tensor)],
    "torch.nn": [("nn", nn)],
    "torch.nn.functional": [("F", F)],
    "torch.linalg": [("linalg", linalg), ("Tensor", Tensor)],
    "tinygrad.Tensor": [("Tensor", Tensor)],
    "tinygrad.nn": [("nn", nn), ("nn.optim", nn.optim), ("nn.state", nn.state)],
}

# Here, with another default, result or spelling: what users must know. A name of one namespace has
# the namespace before it.
DIFFERENT = {
    "max": "of a dim: values alone; `max_with_indices` gives both",
    "min": "of a dim: values alone; `min_with_indices` gives both",
    "median": "of a dim: values alone",
    "randint": "`Tensor.randint(*shape, low=0, high=10)`",
    "normal": "`Tensor.normal(*shape, mean=0, std=1)`",
    "data": "assigning to it writes; `x.data()` is a memoryview",
    "numpy": "a copy", "to": "a device or a dtype", "size": "a tuple",
    "unique": "without `dim`",
    "frexp": "`x.abs().log2().floor() + 1` is the exponent",
    "trapz": "`((x[1:] + x[:-1]) * dx / 2).sum()`",
    "tensor": "`Tensor(data)`", "as_tensor": "`Tensor(data)`", "asarray": "`Tensor(data)`",
    "from_numpy": "`Tensor(array)`, or `Tensor.from_dlpack`", "from_file": "`nn.state.safe_load`",
    "frombuffer": "`Tensor.from_bytes`", "to_dlpack": "`x.__dlpack__()`",
    "is_tensor": "`isinstance(x, Tensor)`", "typename": "`x.dtype.name`",
    "save": "`nn.state.safe_save`", "load": "`nn.state.safe_load`, `nn.state.torch_load`",
    "compile": "`@jit`", "range": "`Tensor.arange`", "get_default_dtype": "`dtypes.default_float`",
    "get_default_device": "`Device.DEFAULT`", "set_default_device": "`Device.DEFAULT = name`",
    "get_rng_state": "`Tensor.random_state`", "set_rng_state": "`Tensor.set_random_state`",
    "seed": "`Tensor.manual_seed(n)`", "initial_seed": "`Tensor.random_state()[0]`",
    "is_grad_enabled": "`Tensor.no_grad`", "set_num_threads": "`MINIGRAD_THREADS`",
    "get_num_threads": "`MINIGRAD_THREADS`", "result_type": "`(x + y).dtype`",
    "promote_types": "`(x + y).dtype`", "can_cast": "`x.cast(dtype)` converts all",
    "combinations": "`x[Tensor.triu_indices(n, n, 1).T]`", "unravel_index": "`i // n`, `i % n`",
    "broadcast_shapes": "`Tensor.broadcast_tensors`", "erfc": "`1 - x.erf()`",
    "erfc_": "`1 - x.erf()`",
    "nonzero_static": "`x.nonzero(size=n)`", "sum_to_size": "`x.sum(axes, keepdim=True)`",
    "unsafe_chunk": "`x.chunk`", "unsafe_split": "`x.split`", "histogram": "`x.histc`",
    "adjoint": "`x.mT`", "H": "`x.T`", "mH": "`x.mT`", "real": "x itself: all dtypes are real",
    "conj": "x itself: all dtypes are real", "conj_physical": "x itself: all dtypes are real",
    "resolve_conj": "x itself: all dtypes are real", "resolve_neg": "x itself",
    "is_conj": "False: all dtypes are real", "is_neg": "False: all dtypes are real",
    "imag": "`x.zeros_like()`: all dtypes are real",
    "float_power_": "`x.copy_(x.double() ** y)`", "log_normal_": "`x.normal_(…).exp_()`",
    "new_empty_strided": "`x.new_empty`", "empty_strided": "`Tensor.empty`",
    "empty_permuted": "`Tensor.empty`", "resize_as_": "`x = x.reshape(y.shape)`",
    "retains_grad": "`loss.gradient(x)`", "is_shared": "`Tensor.from_dlpack` shares memory",
    "register_post_accumulate_grad_hook": "`loss.gradient(x)`", "is_inference": "`x.requires_grad`",
    "matrix_norm": "`linalg.matrix_norm`", "vecdot": "`(x * y).sum(-1)`",
    "vector_norm": "`x.norm(p, dim)`", "svdvals": "`x.svd(False)[1]`",
    "slogdet": "`linalg.slogdet`", "eigh": "`linalg.eigh`",
    "eigvalsh": "`linalg.eigvalsh`", "matrix_rank": "`linalg.matrix_rank`",
    "pinv": "`linalg.pinv`", "inv": "`linalg.inv`",
    "solve": "`linalg.solve`", "cholesky": "`linalg.cholesky`",
    "det": "`linalg.det`", "logdet": "`linalg.slogdet`",
    "inverse": "`linalg.inv`", "pinverse": "`linalg.pinv`",
    "max_pool1d_with_indices": "`F.max_pool1d(…, return_indices=True)`",
    "max_pool2d_with_indices": "`F.max_pool2d(…, return_indices=True)`",
    "max_pool3d_with_indices": "`F.max_pool3d(…, return_indices=True)`",
    "upsample_bilinear": "`F.interpolate(…, mode=\"bilinear\", align_corners=True)`",
    "upsample_nearest": "`F.interpolate`", "UninitializedParameter": "`nn.blank()`",
    "UninitializedBuffer": "`nn.blank()`",
    "max_shape": "`x.shape`", "max_numel": "`x.numel()`", "const_like": "`x.full_like`",
    "const": "`Tensor.full`", "usum": "`x.sum()`, of several `a + b`", "uprod": "`x.prod()`",
    "TensorIO": "`nn.state.safe_load`", "as_param": "`nn.Parameter`", "to_": "`x = x.to(device)`",
    "is_param_": "`x.requires_grad_()`", "from_blob": "`Tensor.from_bytes`",
    "set_printoptions": "`numpy.set_printoptions`", "float": "float32",
    "linear": "of Tensor: an (in, out) weight",
    "torch.gradient": "as `torch.autograd.grad`; for slopes, `x.diff()`",
    "torch.svd": "as `torch.linalg.svd`: Vh, not V, and full matrices",
    "torch.Tensor.svd": "as `torch.linalg.svd`: Vh, not V, and full matrices",
}  # fmt: skip

# Not here: the reason, and patterns of whole names.
ABSENT = r"""
all dtypes are real
    complex view_as_complex polar view_as_real angle cfloat cdouble chalf conj_physical_
all tensors are dense
    .*sparse.* (c?col|c?row)_indices coalesce is_coalesced indices values dense_dim hspmm smm
    sspaddmm to_dense to_mkldnn to_padded_tensor index
whole weights are quantized: `nn.state.gguf_load`
    quantize.* dequantize int_repr q_.* qscheme is_quantized
memory is the engine's; graphs are immutable
    as_strided.* .*storage.* data_ptr const_data_ptr pin_memory is_pinned share_memory_ stride
    is_contiguous dim_order record_stream set_ is_set_to apply_ map_ register_hook retain_grad
    is_leaf grad_dtype detach_ module_load as_subclass reinforce hash_tensor is_meta
only values change in place, not shapes: `x = x.squeeze()`
    resize_ squeeze_ unsqueeze_ t_ transpose_ swapaxes_ swapdims_
no processor's or formula's function here; scipy has it
    i0_? igammac?_? polygamma_? erfinv_? gcd_? lcm_? cauchy_ geometric_ poisson
QR and SVD are here (`qr`, `svd`), systems in `linalg`
    cholesky_.* geqrf orgqr ormqr lobpcg lu lu_.* ldl_.* pca_lowrank svd_lowrank eig eigvals
    triangular_solve solve_.* householder_product matrix_exp cond lstsq inv_ex tensorinv
    tensorsolve
no Fourier transforms; a DFT is a product with a matrix
    stft istft .*_window
steps are captured (`@jit`), not traced
    fork wait vmap while_loop
PyTorch's own state
    set_.* get_.* is_.*enabled is_storage is_inference.* use_deterministic.* are_deterministic.*
    thread_safe_generator
`x.to(device)`, `x.device`
    cuda cpu xpu mtia ipu is_cuda is_cpu is_mps is_xla is_xpu is_ipu
rarely used: nobody has asked for it
    histogramdd segment_reduce conv_tbc CrossMapLRN2d FractionalMaxPool.* fractional_.*
    AdaptiveLogSoftmaxWithLoss LinearCrossEntropy.* linear_cross_entropy grouped_mm scaled_.*mm
    .*with_indices F?e?a?t?u?r?e?AlphaDropout .*alpha_dropout
rarely written in place: `x.copy_(x.erf())`
    .*_
layers are made with their sizes
    Lazy.*
`x.pad(…, mode=…)`
    .*Pad[123]d
minigrad has no CTC loss; its recursion is a `Tensor.scan`
    CTCLoss ctc_loss
composed of others
    ParameterDict EmbeddingBag embedding_bag
tinygrad's engine
    alu call callify invalids threefry random_bits keccak hash custom_kernel image_.* ufix
    schedule_linear linear_with_vars newton_schulz decode_.* shard.* contiguous_backward
Python's tarfile, zipfile, urllib
    fs_.* accept_filename tar_extract zip_extract from_url
"""


def namespaces() -> dict[str, list[str]]:
    """The names, by namespace."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "tests" / "functions.txt").read_text("utf-8").splitlines():
        if line.startswith("["):
            names = found[line.strip("[]")] = []
        elif line and not line.startswith("#"):
            names.extend(line.split())
    return found


def here(namespace: str, name: str) -> str | None:
    """How users write the name, if it is here."""
    for prefix, place in PLACES[namespace]:
        if hasattr(place, name):
            return f"{prefix}.{name}"
    return None


def otherwise(namespace: str, name: str) -> str | None:
    """How to get the same here under another name."""
    if name in DIFFERENT:
        return DIFFERENT[name]
    for typed, text in table().items():
        found = re.match(r"(\w+)\.(\w+)", typed)
        if found and found[2] == name and text.split()[0] not in ("no", "leave"):
            owners = {prefix for prefix, _ in PLACES[namespace]}
            if OWNERS.get(found[1], found[1]) in owners | {"functional"} or found[1] in owners:
                return text.replace("|", "\\|")
    return None


def absent(name: str) -> str | None:
    """Why it is not here."""
    for why, patterns in re.findall(r"^(\S.*)\n((?: .*\n)+)", ABSENT, re.MULTILINE):
        if any(re.fullmatch(pattern, name) for pattern in patterns.split()):
            return str(why)
    return None


def page() -> str:
    """The page's text."""
    spaces = namespaces()
    same = {n for s, names in spaces.items() if s.startswith("torch") for n in names if here(s, n)}
    parts = [
        "# Where PyTorch's and tinygrad's functions are\n",
        "Written by `python tests/function_page.py`.\n",
        f"{len(same)} of PyTorch's names are here, each counted once. A listed name means the same",
        "as there, unless the table below its list, or [differences](differences.md), differs.",
        "`F` is `nn.functional`.\n",
    ]
    for space, names in spaces.items():
        found = [name for name in names if here(space, name)]
        parts.append(f"## {space}: {len(found)} of {len(names)} under the same name\n")
        usual = PLACES[space][0][0]
        listed = [(here(space, name) or name).removeprefix(f"{usual}.") for name in found]
        parts.append(f"In `{usual}`, or where a name says: {', '.join(f'`{n}`' for n in listed)}\n")
        known = {n: DIFFERENT.get(f"{space}.{n}", DIFFERENT.get(n, "`linalg")) for n in found}
        rows = [f"| `{n}` | {how} |" for n, how in known.items() if not how.startswith("`linalg")]
        rest = [name for name in names if name not in found]
        rows += [f"| `{n}` | {otherwise(space, n)} |" for n in rest if otherwise(space, n)]
        parts.append("\n".join(["| here otherwise | how |", "| --- | --- |", *rows]) + "\n")
        reasons: dict[str, list[str]] = {}
        for name in rest:
            if not otherwise(space, name):
                reasons.setdefault(absent(name) or "?", []).append(name)
        lines = [f"- {why}: {', '.join(f'`{n}`' for n in given)}" for why, given in reasons.items()]
        parts.append("\n".join(["Not here:\n", *lines]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
