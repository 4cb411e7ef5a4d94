"""How a GPT and its optimizer are divided among the devices of a mesh.

tp    columns of c_attn (by heads) and c_fc, rows of c_proj, so that a block is two sums over "tp"
      forward and two backward (Shoeybi et al., "Megatron-LM", 2019)
zero  what AdamW keeps (1), gradients too (2), parameters too (3) are divided over "dp" (Rajbhandari
      et al., "ZeRO", 2020)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minigrad import Blocks, Device, Mesh, P, Tensor, nn
from minigrad.models.errors import InputError


def spec_of(name: str, model: Any) -> P:
    """Which axes divide a parameter, by its name."""
    config = model.config
    if ".c_attn." in name:
        return P(Blocks("tp", 3))
    if ".mlp.c_fc." in name:
        return P(Blocks("tp", 2 if config.activation == "swiglu" else 1))
    if name.endswith("c_proj.weight"):
        return P(None, "tp")
    return P()


def check(config: Any, sizes: Any) -> None:
    """InputError where a model cannot be divided so."""
    tp = sizes.get("tp", 1)
    if tp == 1:
        return
    if config.experts:
        raise InputError("--experts with --tp: the experts of a mixture cannot be divided yet")
    if config.key_value_heads != config.heads:
        raise InputError(
            f"--key-heads {config.key_value_heads} with --tp: heads of queries and keys cannot be "
            "divided alike; leave --key-heads out"
        )
    if config.heads % tp:
        raise InputError(f"--tp {tp} cannot divide {config.heads} heads: give a divisor of that")
    if config.hidden % tp:
        raise InputError(f"--tp {tp} cannot divide a feed-forward width of {config.hidden}")


def divide(
    model: Any, mesh: Mesh, zero: int = 0, optimizer: nn.optim.Optimizer | None = None
) -> None:
    """Put a GPT on a mesh, and what its optimizer keeps, if that is made already.

    zero: 0 … 3, as above; over the axis "dp".
    """
    tp = mesh.sizes.get("tp", 1) > 1
    stored = "dp" if mesh.sizes.get("dp", 1) > 1 else None
    specs = {}
    for name, parameter in nn.state.get_state_dict(model).items():
        specs[id(parameter)] = spec = spec_of(name, model) if tp else P()
        if optimizer is None:
            parameter.shard_(mesh, spec, stored=stored if zero == 3 else None)
    if optimizer is not None:
        for tensors in optimizer.moments.values():
            for parameter, tensor in zip(optimizer.params, tensors, strict=True):
                spec = specs[id(parameter)]
                tensor.shard_(mesh, spec, stored=stored if zero else None)


class Division:
    """A GPT on a mesh, as a training sees it: its batches, its gradients, its way back."""

    def __init__(self, model: Any, mesh: Mesh, zero: int) -> None:
        self.model, self.mesh, self.zero = model, mesh, zero
        divide(model, mesh, zero)

    @property
    def is_first(self) -> bool:
        """Whether this process talks and writes files."""
        first: bool = Device[self.mesh.name].local[0].number == 0  # type: ignore[attr-defined]
        return first

    def batch(self, *arrays: Any) -> list[Tensor]:
        """numpy arrays (batch, …) as tensors, divided over "dp"."""
        spec = P("dp") if "dp" in self.mesh.sizes else P()
        first = self.mesh.devices[0] if Device.DEFAULT in Device.meshes else None
        return [Tensor(array, device=first).shard(self.mesh, spec).realize() for array in arrays]

    def divide_gradients(self, params: Sequence[Tensor]) -> None:
        """ZeRO-2: gradients that are kept from one part of a batch to the next are divided."""
        if self.zero < 2:
            return
        for param in params:
            if param.grad is not None:
                moment = self._like[id(param)]
                param.grad = param.grad.shard_like(moment).requires_grad_(False)

    def take(self, optimizer: nn.optim.Optimizer) -> None:
        """Divide what an optimizer keeps."""
        divide(self.model, self.mesh, self.zero, optimizer)
        first = next(iter(optimizer.moments.values()), optimizer.params)
        self._like = {id(p): m for p, m in zip(optimizer.params, first, strict=True)}

    def release(self) -> None:
        """Give every process the whole model, on one device."""
        for parameter in nn.state.get_state_dict(self.model).values():
            with Tensor.no_grad():
                parameter._point(parameter.to(self._device).realize().raw)

    @property
    def _device(self) -> str:
        return str(Device[self.mesh.name].local[0].device)  # type: ignore[attr-defined]
