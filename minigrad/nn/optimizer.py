"""What all optimizers have in common: steps, options, state, groups. Their rules: `optim.py`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import unwrap
from itertools import chain
from numbers import Real
from threading import get_ident
from typing import Any

from minigrad.dtype import convert, dtypes, number_bytes
from minigrad.errors import GradientError, expect
from minigrad.gc_pause import gc_paused
from minigrad.graph.node import Node
from minigrad.hints import hint, put_hints
from minigrad.nn.members import Training, check_state, load_state_dict, tensors_of
from minigrad.nn.module import _forget_gradients
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import check_functions, check_names
from minigrad.tensor.broadcasting import check_flag
from minigrad.tensor.contraction import accumulator
from minigrad.tensor.modes import modes
from minigrad.tensor.observed import capturing, observe
from minigrad.tensor.realization import write_now
from minigrad.tensor.templates import is_template, templated

Rule = Callable[..., tuple[Tensor, ...]]
_NUMBERS = ("momentum", "weight_decay", "eps", "tcoef")  # options that must be ≥ 0


class ParamGroup(Mapping[str, Any]):
    """PyTorch's view of an optimizer in `param_groups`: its params and options by name.

    ["lr"] is a number here; setting it compiles nothing. Options can be set, too. A group may have
    a "name", which no rule reads.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.names = ["lr", "params", *optimizer.options, *["name"] * hasattr(optimizer, "name")]

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(f"param_groups has no {name!r}: expected one of {', '.join(self.names)}")
        if name in self.optimizer.options:
            observe(self.optimizer, name)
        return _short(self.optimizer.lr.item()) if name == "lr" else getattr(self.optimizer, name)

    def __setitem__(self, name: str, value: Any) -> None:
        known = ["lr", *self.optimizer.options]
        expect(name in known, f"cannot set param_groups[…][{name!r}]",
               f"one of {', '.join(known)}", error=KeyError)  # fmt: skip
        setattr(self.optimizer, name, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Steps(Training):
    """What single optimizers and groups of them have in common: steps, gradients, state.

    _parts: the optimizers, by the prefix of their names in a state.
    """

    params: list[Tensor]
    _parts: Callable[[], Mapping[str, Optimizer]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set all gradients to None, or to 0: the next step then still applies decay and momentum.
        """
        _forget_gradients(self.params, set_to_none)

    def step(self, forget: bool = False) -> None:
        """Update the parameters that have a gradient; everything is computed in one program.

        forget: as if `zero_grad` were called right afterwards. Lazy gradients are then never
        stored, which saves their memory, and the time to write it.
        """
        name = type(self).__name__
        if callable(forget):
            raise TypeError(f"{name}.step: expected no closure; {hint('optimizer.step(print)')}")
        check_flag(f"{name}.step", "forget", forget)
        layer = modes.unsaid and modes.unsaid()
        modes.unsaid = None
        if layer is not None and layer._training is None and not Tensor.training:
            warnings.warn(
                f"{type(layer).__name__} was in evaluation mode during this training step; choose "
                "a mode with model.train() or `with Tensor.train():`, or model.eval()", stacklevel=2
            )  # fmt: skip
        with Tensor.no_grad(), gc_paused():
            parts = [*self._parts().values()]
            # all of them before the first write, because this raises if a captured step would
            # have to read a count
            places = [part._separate_counts() for part in parts]
            new = [x for part, own in zip(parts, places, strict=True) for x in part._updated(own)]
            if forget:
                self.zero_grad()
            if not new:
                raise GradientError(
                    f"{name}.step(): no parameter has a gradient; call loss.backward() first"
                )
            # also gradients: a clipped one that is still lazy would be computed again later
            grads = [grad for param in self.params if (grad := param.grad) is not None]
            if not write_now(new, grads):
                for tensor, node in new:
                    tensor._write(node)
                Tensor.realize(*[tensor for tensor, _ in new], *grads)

    @property
    def param_groups(self) -> list[ParamGroup]:
        """One for each optimizer: `for group in optimizer.param_groups: group["lr"] = …`."""
        return [ParamGroup(part) for part in self._parts().values()]

    def state_dict(self) -> dict[str, Tensor]:
        """The state for a checkpoint: learning rate, step count, moments.

        In a group, names begin with the optimizer's number. "step.0" is the count of a parameter
        that took a different number of steps than most.
        """
        return self._named([part.counts for part in self._parts().values()])

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` returned; errors as for `nn.state.load_state_dict`."""
        check_state("load_state_dict", state)
        parts = self._parts()
        counts = [part._counts_in(state, prefix) for prefix, part in parts.items()]
        load_state_dict(self._named(counts), state)
        for part, own in zip(parts.values(), counts, strict=True):
            part._share(own)

    def _named(self, counts: Iterable[list[Tensor]]) -> dict[str, Tensor]:
        """The whole state, with these counts for each optimizer's parameters."""
        parts = zip(self._parts().items(), counts, strict=True)
        return {f"{prefix}{name}": tensor for (prefix, part), own in parts
                for name, tensor in part._state(own).items()}  # fmt: skip


class Optimizer(Steps):
    """Base class of optimizers. params: tensors, each taken once; they become leaves.

    Parameters with requires_grad=False are not updated until they are set to True. A list of dicts
    {"params": tensors, option: value, …} gives an `OptimizerGroup`, one optimizer for each dict,
    which may also have a "name".
    lr: a number, or a float32 tensor of one element, which is read in every step.

    rule(param, gradient, lr, t, moments …, option=…) returns the new values of a parameter and its
    moments, in at least float32; t: the number of steps, this one included. moments: their names;
    they start at 0. options: keyword arguments of the rule; they are attributes of the optimizer.
    """

    rule: Rule

    def __new__(cls, params: Any = (), *args: Any, **options: Any) -> Any:
        """An optimizer, or a group of them for a list of dicts. (Copies pass no arguments.)"""
        check_names(cls.__name__, cls.__init__, options)
        if not isinstance(params, (list, tuple)) or not any(isinstance(p, dict) for p in params):
            return super().__new__(cls)
        for group in params:
            expect(isinstance(group, dict) and "params" in group,
                   cls.__name__, 'parameter groups as {"params": tensors, "lr": 0.1}',
                   type(group).__name__, error=TypeError)  # fmt: skip
        made = []
        for group in params:
            own = dict(group)
            tensors = own.pop("params")
            tensors = [tensors] if isinstance(tensors, Tensor) else tensors
            name = {"name": own.pop("name")} if "name" in own else {}
            made.append(cls(tensors, *(() if "lr" in own else args), **{**options, **own}))
            vars(made[-1]).update(name)
        return OptimizerGroup(*made)

    def __init__(
        self, params: Iterable[Tensor], lr: float | Tensor, moments: Iterable[str] = (),
        **options: Any,
    ) -> None:  # fmt: skip
        _check_numbers(self, lr=lr, **{n: v for n, v in options.items() if n in _NUMBERS})
        name = type(self).__name__
        expect(not isinstance(params, Tensor), f"{name}(params)",
               f"a list of tensors; write {name}([x])", "a single Tensor",
               error=TypeError)  # fmt: skip
        self.params = list({id(tensor): tensor for tensor in tensors_of(name, params)}.values())
        expect(self.params, name, "at least one parameter", "none", error=ValueError)
        for tensor in self.params:
            expect(tensor.requires_grad is not None or not tensor._descends_from_leaves(), name,
                   "leaves; pass those, or x.detach() to train it instead", "a tensor of shape "
                   f"{tensor.shape} computed from tensors that require a gradient",
                   error=GradientError)  # fmt: skip
        for tensor in self.params:  # checked first: no tensor is marked if one is invalid
            if tensor.requires_grad is not False:  # False means frozen
                tensor.requires_grad = True
        # in one program, and now, so that the first step is the same program as all others
        Tensor.realize(*self.params)
        self.device = self.params[0].device
        if isinstance(lr, Tensor):
            expect(lr.numel() == 1 and lr.dtype is dtypes.float32 and lr.device == self.device,
                   f"{name}: lr", f"one float32 on {self.device}",
                   f"{lr.dtype.name} {lr.shape} on {lr.device}")  # fmt: skip
            self._lr = lr.realize()
        else:
            self._lr = self._number(lr)
        # for a scheduler that begins later
        self.lr_at_first = _short(self._lr.item())
        _check_numbers(self, lr=self.lr_at_first)
        # Steps taken by each parameter; parameters with the same number share one tensor.
        self.t = self._number(0.0)
        self.counts = [self.t] * len(self.params)
        self._divided = 0  # how often parameters with a shared count were separated
        self.moments = {name: [_zeros(param) for param in self.params] for name in moments}
        self.options = list(options)
        vars(self).update(options)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self).get("options", ()):
            _check_numbers(self, **{name: value} if name in _NUMBERS else {})
            late = name == "momentum" and value and "momentum_buffer" not in self.moments
            expect(not late, type(self).__name__, "momentum > 0 when the optimizer is made, which "
                   "creates its buffers", error=ValueError, momentum=value)  # fmt: skip
            observe(self, name, written=True)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        options = [f"{n}={v}" for n, v in ParamGroup(self).items() if n not in ("params", "lr")]
        return f"{type(self).__name__}({', '.join([f'lr={self.lr.item():g}', *options])})"

    def _number(self, value: float) -> Tensor:
        return Tensor(value, dtype=dtypes.float32, device=self.device, requires_grad=False)

    @property
    def lr(self) -> Tensor:
        """The learning rate, a tensor of one element; assigning a number or tensor writes to it."""
        return self._lr

    @lr.setter
    def lr(self, lr: float | Tensor) -> None:
        if lr is not self._lr:
            self.set_lr(lr)

    def set_lr(self, lr: float | Tensor) -> None:
        """Set the learning rate of later steps, captured ones too; compiles nothing.

        Within a step that is being captured, a program writes it, as a replay must write it again.
        """
        expect(not isinstance(lr, Tensor) or lr.numel() == 1, f"{type(self).__name__}: lr",
               "one number", lr)  # fmt: skip
        if get_ident() in capturing:
            _check_numbers(self, lr=lr)
            given = lr if isinstance(lr, Tensor) else self._lr.full_like(lr)
            with Tensor.no_grad():
                self._lr.assign(given.detach().reshape(self._lr.shape))
            return
        number = lr.item() if isinstance(lr, Tensor) else lr
        _check_numbers(self, lr=number)
        self._lr._fill(number_bytes(number, dtypes.float32))

    def _updated(self, places: Sequence[int]) -> list[tuple[Tensor, Node]]:
        """The counts of these parameters, their moments and themselves, with their new values."""
        counts = {id(count): count for count in map(self.counts.__getitem__, places)}
        moved = {number: count + 1 for number, count in counts.items()}
        found = [(count, moved[number].node) for number, count in counts.items()]
        update = _updated if is_template(self.rule) else unwrap(_updated)
        moments = [*self.moments.values()]
        # parameters with the same count of steps and options
        groups: dict[tuple[int, ...], tuple[dict[str, Any], list[int]]] = {}
        for place in places:
            options = self._options_of(self.params[place])
            form = (id(self.counts[place]), *map(id, options.values()))
            groups.setdefault(form, (options, []))[1].append(place)
        for options, some in groups.values():
            count = moved[id(self.counts[some[0]])]
            written = [[tensors[place] for tensors in (*moments, self.params)] for place in some]
            given = chain([self.params[place].grad for place in some], chain.from_iterable(written))
            made = update(self.rule, len(moments), self.lr, count, *given, **options)
            found += zip(chain.from_iterable(written), made, strict=True)
        return found

    def _separate_counts(self) -> list[int]:
        """The places of parameters with a gradient; others that share their counts get new ones."""
        places = [i for i, param in enumerate(self.params) if param.grad is not None]
        if not places:
            return []
        for name in ("_divided", *self.options):
            observe(self, name)
        moving = {id(count): count for count in map(self.counts.__getitem__, places)}
        counts, staying = self.counts[:], dict[int, Tensor]()
        for place in {*range(len(counts))}.difference(places):
            key = id(counts[place])
            if key in moving and key not in staying:
                staying[key] = self._number(moving[key].item())
            counts[place] = staying.get(key, counts[place])
        self._share(counts)
        return places

    def _counts_in(self, state: Mapping[str, Any], prefix: str) -> list[Tensor]:
        """The count of each parameter; one tensor for parameters with equal numbers in a state."""
        made: dict[float, Tensor] = {}
        counts = []
        for place, own in enumerate(self.counts):
            number = state.get(f"{prefix}step.{place}")
            used = own is self.t or any(own is other for other in made.values())
            if number is not None:
                made.setdefault(float(number), self._number(0.0) if used else own)
            counts.append(self.t if number is None else made[float(number)])
        return counts

    def _share(self, counts: list[Tensor]) -> None:
        """Use these counts for the parameters."""
        if any(one is not other for one, other in zip(counts, self.counts, strict=True)):
            observe(self, "_divided", written=True)
            self.counts, self._divided = counts, self._divided + 1

    def _options_of(self, param: Tensor) -> dict[str, Any]:
        """The rule's options for a parameter."""
        return {name: getattr(self, name) for name in self.options}

    def _parts(self) -> Mapping[str, Optimizer]:
        return {"": self}

    def _state(self, counts: list[Tensor]) -> dict[str, Tensor]:
        apart = {f"step.{i}": t for i, t in enumerate(counts) if t is not self.t}
        named = {
            f"{name}.{i}": tensor
            for name, tensors in self.moments.items()
            for i, tensor in enumerate(tensors)
        }
        return {"lr": self.lr, "step": self.t, **apart, **named}


class OptimizerGroup(Steps):
    """Several optimizers, for different kinds of parameters, that step in one program.

    Use it like one of them: `zero_grad()`, `step()`, `state_dict()`.
    """

    def __init__(self, *optimizers: Optimizer) -> None:
        if not optimizers or not all(isinstance(one, Optimizer) for one in optimizers):
            kinds = ", ".join(type(one).__name__ for one in optimizers)
            raise TypeError(f"OptimizerGroup({kinds}): expected optimizers, one after the other")
        for one in optimizers:
            name = type(one).__name__
            expect(type(one).step is Steps.step, "OptimizerGroup", "optimizers without a step() of "
                   f"their own; {name}(tensors) takes all at once", name,
                   error=ValueError)  # fmt: skip
        self.optimizers = list(optimizers)
        self.params = [param for optimizer in optimizers for param in optimizer.params]
        if len({id(param) for param in self.params}) < len(self.params):
            raise ValueError("OptimizerGroup: expected each parameter in only one optimizer")

    def __repr__(self) -> str:
        return f"OptimizerGroup({', '.join(map(repr, self.optimizers))})"

    def __getitem__(self, place: int) -> Optimizer:
        return self.optimizers[place]

    def __len__(self) -> int:
        return len(self.optimizers)

    def _parts(self) -> Mapping[str, Optimizer]:
        return {f"{i}.": optimizer for i, optimizer in enumerate(self.optimizers)}


def _short(value: float) -> float:
    """The shortest decimal number that is this float32: 0.1 for 0.10000000149011612."""
    near = (float(f"{value:.{digits}g}") for digits in range(6, 10))
    return next((one for one in near if convert(one, dtypes.float32) == value), value)


@templated
def _updated(
    rule: Rule, moments: int, lr: Tensor, t: Tensor, /, *tensors: Tensor, **options: Any
) -> list[Node]:
    """What a step writes: of each parameter its new moments, then its new values.

    tensors: all gradients; then, of each parameter, so many moments and itself.
    """
    count = len(tensors) // (moments + 2)
    made: list[Node] = []
    for at, grad in enumerate(tensors[:count]):
        *own, param = old = tensors[count:][at * (moments + 1) :][: moments + 1]
        wide = accumulator(param.dtype)
        new, *moved = rule(param.cast(wide), grad.cast(wide), lr, t, *own, **options)
        made += [value.cast(one.dtype).node for value, one in zip([*moved, new], old, strict=True)]
    return made


@templated
def _clipped(max_norm: float, *grads: Tensor) -> tuple[Tensor, ...]:
    """The joint 2-norm of gradients, and these scaled so that it is at most max_norm."""
    held = [grad.cast(accumulator(grad.dtype)) for grad in grads]
    first, *others = [(one * one).sum() for one in held]
    norm: Tensor = sum(others, first).sqrt()
    factor = (max_norm / (norm + 1e-6)).minimum(1)
    return norm, *[(grad * factor).cast(grad.dtype) for grad in grads]


def _zeros(param: Tensor) -> Tensor:
    """A moment: zeros in the parameter's shape and sharding, in at least float32."""
    zeros = Tensor.zeros(param.shape, dtype=accumulator(param.dtype), device=param.device)
    return zeros._own_memory().requires_grad_(False).shard_like_(param)


def _check_numbers(optimizer: Optimizer, **given: float | Tensor) -> None:
    """ValueError for a number below 0 or NaN; tensors are not checked."""
    for name, value in given.items():
        if not isinstance(value, Tensor) and not (isinstance(value, Real) and value >= 0):
            raise ValueError(f"{type(optimizer).__name__}({name}={value!r}): expected a number ≥ 0")


def clip_grad_norm(params: Tensor | Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients so that their joint 2-norm is at most max_norm; returns the norm before.

    Lazy: this becomes part of the program of the next step. GradientError if no parameter has a
    gradient, ValueError for a negative max_norm.
    """
    expect(max_norm >= 0, "clip_grad_norm", "a number ≥ 0", error=ValueError, max_norm=max_norm)
    given = tensors_of("clip_grad_norm", params)
    with Tensor.no_grad():
        grads = [(param, param.grad) for param in given if param.grad is not None]
        if not grads:
            raise GradientError("clip_grad_norm: no parameter has a gradient")
        norm, *clipped = _clipped(max_norm, *[grad for _, grad in grads])
        for (param, _), grad in zip(grads, clipped, strict=True):
            param.grad = grad.requires_grad_(False)
        return norm


put_hints("Optimizer", Optimizer)
check_functions(globals())
