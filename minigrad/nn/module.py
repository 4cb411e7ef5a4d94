"""`Module`: a base class that knows its parameters, buffers and mode, as torch.nn.Module does."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from types import CodeType, FunctionType
from typing import Any, ClassVar, Self

from minigrad.device import Device
from minigrad.dtype import DType, dtypes, resolve
from minigrad.errors import StateError, expect
from minigrad.hints import hint, present, put_hints
from minigrad.nn.members import (
    Kind,
    Member,
    Names,
    get_state_dict,
    load_state_dict,
    mark_of,
    once,
    walk,
    warn_of_unmarked,
)
from minigrad.settings import thread
from minigrad.tensor import Tensor, views
from minigrad.tensor.arguments import check_functions, checked
from minigrad.tensor.broadcasting import check_flag, plain_sizes
from minigrad.tensor.core import stored
from minigrad.tensor.modes import modes
from minigrad.tensor.observed import capturing, observe, replaces
from minigrad.tensor.pytree import Same
from minigrad.tensor.sharding import layout_of


def checked_part(name: str, part: Any) -> Any:
    """A layer or function, unchanged; TypeError for anything else."""
    if isinstance(part, type):
        kind = part.__name__
        raise TypeError(f"{name}: expected a layer, got the class {kind}; write {kind}(…)")
    if not callable(part):
        raise TypeError(f"{name}: expected a layer or a function of a tensor, got {part!r}")
    return part


def checked_name(title: str, name: Any) -> str:
    """A part's name, unchanged; TypeError unless a string, StateError if it is empty or has a dot.
    """
    if not isinstance(name, str):
        raise TypeError(f"{title}({name!r:.60}): expected a string, as 'hidden'")
    if not name or "." in name:
        raise StateError(f"{title}({name!r}): expected a non-empty name without dots")
    return name


def _forget_gradients(tensors: Iterable[Tensor], set_to_none: bool) -> None:
    """Set the gradients of tensors to None, or to 0."""
    check_flag("zero_grad", "set_to_none", set_to_none)
    for tensor in tensors:
        keeps = not set_to_none and tensor.grad is not None
        tensor.grad = tensor.grad.zeros_like(requires_grad=False) if keeps else None


_OWN = ("_kinds", "_training", "_moves", "_hooks", "_waiting")
_NUMBERS = (bool, int, float, str, tuple, type(None))


def Parameter(data: Any, requires_grad: bool = True) -> Tensor:
    """A tensor that is trained and saved: `data` itself if it is a Tensor, marked as a leaf.

    data: a float Tensor, or anything that `Tensor` takes. With requires_grad=False it is a
    `buffer`.
    """
    tensor = data if isinstance(data, Tensor) else Tensor(data)
    return tensor.requires_grad_(True) if requires_grad else buffer(tensor)


def buffer(data: Any) -> Tensor:
    """A tensor that is saved but never trained, such as a mask or running statistics.

    data: a Tensor, which is marked and returned itself, or anything that `Tensor` takes.
    """
    tensor = data if isinstance(data, Tensor) else Tensor(data)
    tensor._become_leaf()  # has its own memory, so it can be written in place
    return tensor.requires_grad_(False)


def _in_own_mode(function: Callable[..., Any], is_forward: bool) -> Callable[..., Any]:
    """A module's `__call__`: the function, run with the module's mode as `Tensor.training`.

    is_forward: the function is the class's `forward`, so another one that was put in its place, in
    the class or the module, is called instead.
    """

    @functools.wraps(function)
    def call(self: Module, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(self, Layer):
            kind = type(args[0])
            if kind.__module__ in self._refused:
                home = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
                given = f"{type(self).__name__}: expected a tensor, got {home}{kind.__name__}"
                raise TypeError(f"{given}; {hint('model(a)')}")
        for attribute in ("_training", "_moves", "_settings", "_hooks"):
            observe(self, attribute)
        # called by a subclass's method (super().__call__), it is this function all the same
        first = type(self).__call__ is call
        run = self.forward if first and is_forward else functools.partial(function, self)
        mode = self._training
        with nullcontext() if mode is None or mode is Tensor.training else Tensor.train(mode):
            if first and self._hooks:
                return _hooked(self, run, args, kwargs)
            return run(*args, **kwargs)

    return call


def _hooked(module: Module, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a module's function, and its hooks before and after."""
    hooks = module._hooks
    for hook in [one for one in hooks if one.before]:
        new = hook.function(module, args)
        args = args if new is None else new if isinstance(new, tuple) else (new,)
    result = run(*args, **kwargs)
    for hook in [one for one in hooks if not one.before]:
        new = hook.function(module, args, result)
        result = result if new is None else new
    return result


class Hook:
    """A function that a module calls before or after its own, until `remove` is called."""

    def __init__(self, module: Module, function: Callable[..., Any], before: bool) -> None:
        name = f"register_forward_{'pre_' * before}hook"
        given = "module, inputs" if before else "module, inputs, output"
        expect(callable(function), f"{name}({function!r:.60})", f"a function hook({given})",
               error=TypeError)  # fmt: skip
        self.module, self.function, self.before = module, function, before
        self._put([*module._hooks, self])

    def _put(self, hooks: list[Hook]) -> None:
        observe(self.module, "_hooks")  # others stay as they are
        observe(self.module, "_hooks", written=True)
        object.__setattr__(self.module, "_hooks", tuple(hooks))

    def remove(self) -> None:
        """Do not call it any more."""
        self._put([hook for hook in self.module._hooks if hook is not self])


def names_in(function: Any) -> frozenset[str]:
    """Names of attributes and globals in the code of a function, and of functions in it."""
    function = inspect.unwrap(getattr(function, "fget", function))  # of a property
    code = getattr(function, "__code__", function)
    if isinstance(code, str):  # perhaps a name given to getattr
        return frozenset([code])
    if not isinstance(code, CodeType):
        return frozenset()
    return frozenset(code.co_names).union(*map(names_in, code.co_consts))


@functools.cache
def names_read(kind: type) -> frozenset[str]:
    """Names that occur in the methods of a class of modules, inherited ones too, except `__init__`.
    """
    classes = [one for one in kind.__mro__ if issubclass(one, Module)]
    methods = [f for one in classes for n, f in vars(one).items() if n != "__init__"]
    return frozenset[str]().union(*map(names_in, methods))


class Module:
    """A part of a model that can be called; subclasses define `forward` or `__call__`.

    Attributes register themselves, also in lists and plain objects of modules: a tensor marked by
    `Parameter` or requires_grad=True is a parameter, one marked by `buffer` or requires_grad=False
    is a buffer. They keep their role when they are frozen, and when another tensor replaces a
    buffer; only a Parameter replaces a parameter (TypeError for other tensors). Other tensors, also
    in lists and plain objects, and results of `detach` are neither, as in PyTorch.

    A new module is in training mode. During a call, `Tensor.training` is the module's mode, so
    functions and plain classes called in it follow. A module without a mode yet (the layers of this
    package) takes the mode of the module that it is assigned to.
    """

    _training: bool | None = True  # None: as Tensor.training
    _moves: int = 0  # how often `to` may have moved its tensors to other memory
    _hooks: tuple[Hook, ...] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        """Make `forward` and `__call__` the same function; calling it sets the module's mode."""
        super().__init_subclass__(**options)
        own: dict[str, Any] = dict(vars(cls))
        if "__init__" in own and cls.__name__.startswith("_"):  # Python's messages name it
            own["__init__"].__qualname__ = f"{cls.__name__[1:]}.__init__"
        function = own.get("__call__", own.get("forward"))
        if function is not None:
            cls.forward = own.get("forward", function)  # type: ignore[method-assign]
            cls.__call__ = _in_own_mode(function, cls.forward is function)  # type: ignore[method-assign]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the result of a call; defined by subclasses."""
        name = type(self).__name__
        raise NotImplementedError(f"{name} has no forward; define forward(self, …) in {name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call `forward` in the module's mode."""
        return self.forward(*args, **kwargs)

    # --- registration -----------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        if (kind := mark_of(value)) is Kind.PARAMETER:
            self._registered()[name] = kind
        elif kind is Kind.BUFFER:
            self._registered().setdefault(name, kind)
        elif isinstance(value, Tensor):
            kind = self._registered().get(name, kind)
            expect(kind is not Kind.PARAMETER, f"{type(self).__name__}.{name} = …",
                   "nn.Parameter(tensor), as it is a parameter; or write to it, with .assign() in "
                   "`with Tensor.no_grad():`", "a plain tensor", error=TypeError)  # fmt: skip
        elif isinstance(vars(self).get(name), Tensor) and value is not None:
            expect(self._registered().get(name) is not Kind.PARAMETER or callable(value),
                   f"{type(self).__name__}.{name} = …", "nn.Parameter(Tensor(…)), or None, as it "
                   "is a parameter", type(value).__name__, error=TypeError)  # fmt: skip
        self._adopt(value)
        before = vars(self).get(name)
        object.__setattr__(self, name, value)
        setting = self._setting(name, value)
        if self._setting(name, before) != setting:
            observe(self, "_settings", written=True)
        if capturing and setting is not None and isinstance(setting, _NUMBERS):
            observe(self, name, written=True)  # a replay sets it again
        if isinstance(before, Tensor) and before is not value:
            replaces(before.raw)

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        self._registered().pop(name, None)
        observe(self, "_settings", written=True)

    def _decides(self, name: str) -> bool:
        """Whether an attribute that is a plain value may influence the result of a call."""
        kind: Any = type(self)
        return name in names_read(kind)

    @property
    def _settings(self) -> dict[str, Any]:
        """The plain values that may influence a call, its modules, parameters and buffers, and what
        stands in place of methods of its class.
        """
        return {name: shown for name, value in {**vars(self), "__class__": type(self)}.items()
                if (shown := self._setting(name, value)) is not None}  # fmt: skip

    def _setting(self, name: str, value: Any) -> Any:
        if isinstance(value, Module):
            return Same(weakref.ref(value))
        if isinstance(value, type) or (callable(value) and hasattr(type(self), name)):
            return Same(value)
        if isinstance(value, Tensor):
            return Same(value._link) if name in self.__dict__.get("_kinds", ()) else None
        return value if isinstance(value, _NUMBERS) and self._decides(name) else None

    def _registered(self) -> dict[str, Kind]:
        """The kinds of attributes, by name; subclasses need not call our `__init__`."""
        return self.__dict__.setdefault("_kinds", {})

    def _adopt(self, value: Any) -> None:
        """Give our mode to a module that has none."""
        if isinstance(value, Module) and value._training is None and self._training is not None:
            value.train(self._training)

    def _members(self) -> Iterator[Member]:
        """Its members: parameters, buffers, the rest, each in the order of definition."""
        observe(self, "_settings")
        kinds = self.__dict__.get("_kinds", {})
        found = [
            (name, value, kinds.get(name, Kind.PLAIN))
            for name, value in vars(self).items() if name not in _OWN
        ]  # fmt: skip
        yield from sorted(found, key=lambda member: member[2])

    def register_buffer(self, name: str, tensor: Any, persistent: bool = True) -> None:
        """Hold a tensor (or None) that is not trained, and is saved only if persistent."""
        checked_name("register_buffer", name)
        self._registered()[name] = Kind.BUFFER if persistent else Kind.TRANSIENT
        setattr(self, name, None if tensor is None else buffer(tensor))

    def register_parameter(self, name: str, param: Tensor | None) -> None:
        """Hold a parameter (or None)."""
        checked_name("register_parameter", name)
        setattr(self, name, None if param is None else Parameter(param))

    def add_module(self, name: str, module: Module | None) -> None:
        """Hold a module (or None)."""
        checked_name("add_module", name)
        setattr(self, name, module if module is None else checked_part("add_module", module))

    register_module = add_module

    # --- contents ---------------------------------------------------------------------------------

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all modules inside it, by dotted names, each once."""
        return ((name, module) for name, module, _ in once(walk(self, prefix), Module))

    def modules(self) -> Iterator[Module]:
        """This module and all modules inside it, each once."""
        return (module for _, module in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly inside it; those in a list or plain object have dotted names."""
        above: list[str] = []
        for name, module in self.named_modules():
            if name and not any(name.startswith(f"{other}.") for other in above):
                above.append(name)
                yield name, module

    def children(self) -> Iterator[Module]:
        """The modules directly inside it."""
        return (module for _, module in self.named_children())

    def _tensors(self, kinds: tuple[Kind, ...], prefix: str, recurse: bool) -> list[Member]:
        """The tensors of some kinds by dotted names, each once."""
        inner = walk(self, prefix) if recurse else self._members()
        return once((member for member in inner if member[2] in kinds), Tensor)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """The parameters, also frozen ones, by dotted names; tied ones once."""
        found = self._tensors((Kind.PARAMETER, Kind.LOOSE, Kind.PLAIN), prefix, recurse)
        warn_of_unmarked(found)
        return iter([(n, t) for n, t, k in found if k is not Kind.PLAIN and t.dtype.is_float])

    def parameters(self, recurse: bool = True) -> Iterator[Tensor]:
        """The parameters, also frozen ones, each once."""
        return (tensor for _, tensor in self.named_parameters("", recurse))

    def named_buffers(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
        """The buffers, saved or not, by dotted names."""
        found = self._tensors((Kind.BUFFER, Kind.TRANSIENT), prefix, recurse)
        return iter([(name, tensor) for name, tensor, _ in found])

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The buffers, saved or not."""
        return (tensor for _, tensor in self.named_buffers("", recurse))

    def register_forward_hook(self, hook: Callable[..., Any]) -> Hook:
        """Call hook(module, inputs, output) after each call; a result replaces the output."""
        return Hook(self, hook, before=False)

    def register_forward_pre_hook(self, hook: Callable[..., Any]) -> Hook:
        """Call hook(module, inputs) before each call; a result replaces the inputs, a tuple."""
        return Hook(self, hook, before=True)

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and saved buffers by PyTorch's names, detached: they share the model's memory.
        """
        return {name: own.detach() for name, own in get_state_dict(self, prefix).items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Names:
        """Copy values by name, cast to the model's dtypes; see `nn.state.load_state_dict`."""
        return load_state_dict(self, state_dict, strict)

    # --- changes to all parts ---------------------------------------------------------------------

    @property
    def training(self) -> bool:
        """Its mode, as set by train or eval; else (for layers on their own) `Tensor.training`."""
        observe(self, "_training")
        return Tensor.training if self._training is None else self._training

    @training.setter
    def training(self, mode: bool) -> None:
        observe(self, "_training", written=True)
        object.__setattr__(self, "_training", bool(mode))

    def train(self, mode: bool = True) -> Self:
        """Set training mode, or evaluation mode, for it and all modules inside it."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Set evaluation mode for it and all modules inside it; gradients are still recorded."""
        return self.train(False)

    def apply(self, fn: Callable[[Module], Any]) -> Self:
        """Call fn with every module inside it, then with itself."""
        expect(callable(fn), "apply", "a function of a module", repr(fn), error=TypeError)
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze its parameters, or make them trainable again."""
        for tensor in self.parameters():
            tensor.requires_grad = requires_grad
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set the gradients of its parameters to None, or to 0."""
        _forget_gradients(self.parameters(), set_to_none)

    def to(self, *where: str | DType, device: str | None = None, dtype: Any = None) -> Self:
        """Move parameters and buffers to a device ("CL"), and cast floats to a dtype ("float16").

        The tensors stay the same objects, so that optimizers made before go on, if the device is
        the same; their gradients are forgotten, and steps captured before raise JitError.
        """
        for each in where:
            if isinstance(each, DType) or (isinstance(each, str) and hasattr(dtypes, each)):
                dtype = each
            else:
                device = each
        wanted = None if dtype is None else resolve(dtype)
        if wanted is not None and not wanted.is_float:
            raise TypeError(f"Module.to({wanted.name}): expected a float dtype, such as 'float16'")
        place = None if device is None else Device.canonical(device)
        kinds = (Kind.PARAMETER, Kind.BUFFER, Kind.TRANSIENT, Kind.LOOSE)
        found = [tensor for _, tensor, _ in self._tensors(kinds, "", True)]
        moved = [_move(one, place, wanted if one.dtype.is_float else None) for one in found]
        for module in self.modules() if any(moved) else ():
            observe(module, "_moves", written=True)
            object.__setattr__(module, "_moves", module._moves + 1)
        return self

    # --- representation ---------------------------------------------------------------------------

    def __dir__(self) -> list[str]:
        return present("Module", super().__dir__())

    def extra_repr(self) -> str:
        """The text that the repr has in parentheses."""
        return ""

    def _shown(self) -> Iterator[tuple[str, Any]]:
        """The parts that the repr lists, by name."""
        return self.named_children()

    def __repr__(self) -> str:
        parts = [(name, getattr(part, "__name__", repr(part))) for name, part in self._shown()]
        lines = [f"({name}): {text}".replace("\n", "\n  ") for name, text in parts]
        if not lines:
            return f"{type(self).__name__}({self.extra_repr()})"
        return "\n  ".join([f"{type(self).__name__}(", *lines]) + "\n)"


def _move(tensor: Tensor, place: str | None, dtype: DType | None) -> bool:
    """Move a tensor to another device or dtype, in place, by way of the host.

    On a mesh it stays divided as it was.
    """
    wanted, before = dtype or tensor.dtype, tensor.raw
    device = place or before.device
    if wanted is tensor.dtype and device == before.device:
        return False
    shape = plain_sizes("Module.to", *tensor.shape)
    data = tensor.detach().cast(wanted)._bytes()
    views.leave(tensor)
    layout = layout_of(before) if device == before.device else None
    tensor._point(stored(data, wanted, shape, device))
    tensor.grad = None
    if layout is not None:
        tensor._move(device, layout)
    return True


put_hints("Module", Module)
for _name, _method in [*vars(Module).items()]:
    if isinstance(_method, FunctionType) and not _name.startswith("_"):
        setattr(Module, _name, checked(_method))


class Layer(Module):
    """A layer of this package, which has no mode of its own until it is given one.

    On its own or in plain classes it follows `Tensor.training`; in a Module, the Module's mode.
    """

    _training = None
    # modules of types that are arguments by mistake: an LSTM returns a pair, and None comes from a
    # forward without return
    _refused: tuple[str, ...] = ("builtins", "numpy", "torch")
    # for the repr: attributes shown by value, by name and value, and those shown if not as here
    _sizes: ClassVar[tuple[str, ...]] = ()
    _named: ClassVar[tuple[str, ...]] = ()
    _unusual: ClassVar[dict[str, Any]] = {}

    def _trains(self) -> bool:
        """Whether to behave as in training; if no mode was ever set, an optimizer's step warns."""
        if self._training is None and thread.gradients and not Tensor.training:
            modes.unsaid = weakref.ref(self)
        return Tensor.training

    def extra_repr(self) -> str:
        """The sizes, and the options by name."""
        named = {name: self._said(name) for name in (*self._named, *self._unusual)}
        usual = self._unusual.items()
        shown = [f"{name}={said}" for name, said in named.items() if (name, said) not in usual]
        return ", ".join([*(str(self._said(name)) for name in self._sizes), *shown])

    def _decides(self, name: str) -> bool:
        return name not in _OWN

    def _said(self, name: str) -> Any:
        value = getattr(self, name, self._unusual.get(name))
        return value if name != "bias" or isinstance(value, bool) else value is not None

    def reset_parameters(self) -> None:
        """Give its own parameters and statistics the values of a new layer, drawn again.

        Not those of layers inside of it (`model.apply(reset)` visits each), those that a subclass
        of yours has added, nor tensors that were given, such as a loss's weights.
        """
        kind = next(kind for kind in type(self).__mro__ if _is_ours(kind))
        names = [*inspect.signature(kind.__init__).parameters][1:]  # type: ignore[misc]
        if not {*names} <= vars(self).keys():  # layers that draw tensors keep their arguments
            return
        given = {name: self._said(name) for name in names}
        new = vars(kind(**given.pop("options", {}), **given))
        own = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        with Tensor.no_grad():
            for name in filter(new.__contains__, own):
                own[name].assign(new[name].to(own[name].device))

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls) and _is_ours(cls):
            cls.__init__ = checked(cls.__init__, sizes=True)  # type: ignore[method-assign]


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith(f"{__package__}.")


check_functions(globals())
