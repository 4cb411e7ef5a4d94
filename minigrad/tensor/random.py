"""Random numbers: a counter on the device, hashed by Threefry.

Threefry (`graph/formulas/threefry.py`) turns a key and a counter into 64 random bits, the same on
all devices. The counter of element i of draw number c is (i, c). The key and c are in a buffer on
the device. Each draw increments c within the program that draws, so a replayed program draws new
numbers.
"""

from __future__ import annotations

import math
import threading
from functools import lru_cache
from typing import Any, Self

from minigrad.device import Device, watching
from minigrad.dtype import DType, DTypeLike, below, check_holds, convert, dtype_of, dtype_or, dtypes
from minigrad.errors import DTypeError, ScanError, ShapeError, expect
from minigrad.graph import build
from minigrad.graph.node import Node, Op
from minigrad.graph.shapes import numel
from minigrad.graph.template import Template
from minigrad.tensor import hostdata, realization, templates
from minigrad.tensor.broadcasting import Scalar, check_share, plain_sizes
from minigrad.tensor.core import Core, stored
from minigrad.tensor.creation import checked_shape
from minigrad.tensor.methods import Methods
from minigrad.tensor.modes import modes

_WORD = dtypes.uint32


def threefry(key: tuple[Node, Node], counter: tuple[Node, Node]) -> tuple[Node, Node]:
    """Two random words for each pair of counter words; all are uint32 of one shape."""
    words = (*key, *counter)
    return build.elementwise(Op.THREEFRY_LOW, *words), build.elementwise(Op.THREEFRY_HIGH, *words)


@lru_cache(maxsize=templates.MOST)
def _words(shape: tuple[int, ...], device: str) -> Template:
    """A template that computes two random words for each element of an array from a state."""
    state = build.buffer("a state", _WORD, (3,), device)
    words = [build.expand(build.shrink(state, [(i, i + 1)]), (numel(shape),)) for i in range(3)]
    index = build.iota(numel(shape), device, _WORD)
    pair = threefry((words[0], words[1]), (index, words[2]))
    return Template([state], [build.reshape(word, shape) for word in pair])


class _State:
    """Key and draw number of one device in one thread.

    fresh: nothing has been drawn since it was seeded. A fresh state of a mesh continues the random
    numbers of the mesh's first device, if that has drawn any.
    """

    def __init__(self, device: str, seed: int) -> None:
        self.device, self.fresh, self.drawn = device, True, 0  # drawn: since the last advance
        self.buffer = stored(_state_bytes(seed), _WORD, (3,), device)
        self.tensor = Core._of(self.buffer)
        self.tensor.requires_grad = False
        realization.accompany(self.buffer, self.tensor, private=True)

    def put(self, state: bytes | bytearray, fresh: bool) -> None:
        """Write a state into the same buffer, so that captured programs use it, too."""
        self.fresh = fresh
        realization.overwrite(self.tensor, self.buffer, state)

    def get(self) -> bytes | bytearray:
        """The state, read by the host."""
        mesh = Device.meshes.get(self.device) if self.fresh else None
        first = None if mesh is None else _states.devices.get(mesh.devices[0])
        return (first or self).tensor.realize().raw.arg.copy_out()

    def draw(self, shape: tuple[int, ...]) -> tuple[Node, Node]:
        """Two random words for each element of an array."""
        if self.fresh and self.device in Device.meshes and watching.watch is None:
            self.put(self.get(), False)
        self.fresh = False
        if self.tensor.raw is self.buffer:
            self.drawn = 0
        # The state is stored for each draw, so that the kernels that draw are equal: with the draw
        # number as a constant in them, each layer's dropout would be compiled on its own.
        state = build.contiguous(self._advanced()) if self.drawn else self.buffer
        words: Any = _words(shape, self.device).made([state])
        self.drawn += 1
        realization.write(self.tensor, self._advanced())
        return words[0], words[1]

    def _advanced(self) -> Node:
        """The state after all draws since the buffer was last advanced."""
        return self.buffer + build.pad(build.const(self.drawn, _WORD, (1,), self.device), [(2, 0)])


def _state_bytes(seed: int) -> bytes:
    return hostdata.pack([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, 0], _WORD)


class _States(threading.local):
    def __init__(self) -> None:
        self.seed = 0
        self.devices: dict[str, _State] = {}


_states = _States()


def states() -> dict[str, _State]:
    """The states of this thread's generators, by device: always the same dict."""
    return _states.devices


def _state_of(device: str) -> _State:
    if device not in _states.devices:
        _states.devices[device] = _State(device, _states.seed)
    return _states.devices[device]


def _draw(name: str, shape: tuple[Any, ...], device: str | None) -> tuple[Node, Node]:
    if modes.describing is not None:
        raise ScanError(
            f"Tensor.scan: {name} inside the step function is called only once, so each step would "
            "have the same numbers; draw them outside, for all steps, and pass them in xs"
        )
    extents = tuple(plain_sizes(name, *checked_shape(name, shape)))
    if numel(extents) > 2**_WORD.bits:  # the counter of an element would occur twice
        raise ShapeError(f"{name}{extents}: expected at most 2³² numbers; draw them in parts")
    return _state_of(Device.canonical(device)).draw(extents)


def _check_sizes(name: str, shape: tuple[Any, ...], plain: bool, example: str) -> None:
    """ShapeError for f(0, 10), which means numbers from 0 to 10 in other libraries.

    plain: no interval is given.
    """
    if plain and len(shape) > 1 and shape[0] == 0 and {*map(type, shape)} == {int}:
        numbers = ", ".join(map(str, shape))
        raise ShapeError(f"{name}({numbers}): expected sizes first, as {name}(2, 3, {example})")


def _uniform(words: tuple[Node, Node], dtype: DType) -> Node:
    """Floats in [0, 1), made of as many leading bits as the significand holds."""
    if dtype is dtypes.float64:
        high = (words[0] >> 5).cast(dtype)  # 27 bits
        low = (words[1] >> 6).cast(dtype)  # 26 bits
        return (high * 2.0**26 + low) * 2.0**-53
    if not dtype.is_float:
        raise DTypeError(f"random numbers in 0 … 1: expected a float dtype, got {dtype.name}")
    bits = dtype.fraction + 1
    whole = (words[0] >> 32 - bits).cast(dtypes.int32)
    return (whole.cast(dtypes.float32) * 2.0**-bits).cast(dtype)


class Random(Methods):
    """Random constructors. Results are lazy; each call draws new numbers."""

    __slots__ = ()

    @staticmethod
    def manual_seed(seed: int = 0) -> None:
        """Restart the random numbers of this thread, on every device.

        Each thread begins with seed 0; give threads different seeds to get different numbers.
        """
        held = -(2**63) <= seed < 2**64  # other bits would not count
        expect(held, "manual_seed", "−2⁶³ … 2⁶⁴ − 1", error=ValueError, seed=seed)
        _states.seed = seed
        for state in _states.devices.values():
            state.put(_state_bytes(seed), True)

    @staticmethod
    def random_state() -> tuple[int, dict[str, list[int]]]:
        """The seed, and the key and draw number of each device, for a checkpoint.

        After `set_random_state` of it, the same numbers are drawn again.
        """
        states = _states.devices.items()
        return _states.seed, {n: hostdata.unpack(state.get(), _WORD) for n, state in states}

    @staticmethod
    def set_random_state(state: tuple[int, dict[str, list[int]]]) -> None:
        """Continue the random numbers from a state that `random_state` returned."""
        fits = isinstance(state, (tuple, list)) and len(state) == 2 and isinstance(state[1], dict)
        expect(fits and all(len(words) == 3 for words in state[1].values()), "set_random_state",
               "what Tensor.random_state() returned", repr(state), error=ValueError)  # fmt: skip
        seed, devices = state
        Random.manual_seed(seed)
        for name, words in devices.items():
            _state_of(name).put(hostdata.pack(words, _WORD), False)

    @classmethod
    def rand(
        cls, *shape: Any, dtype: DTypeLike = None, device: str | None = None,
        requires_grad: bool | None = None,
    ) -> Self:  # fmt: skip
        """Uniform in [0, 1); float32 unless dtype is given.

        >>> Tensor.rand(2, 3).shape
        (2, 3)
        """
        wanted = dtype_or(dtype, dtypes.default_float)
        return cls._made(_uniform(_draw("rand", shape, device), wanted), requires_grad, drawn=True)

    @classmethod
    def randn(
        cls, *shape: Any, dtype: DTypeLike = None, device: str | None = None,
        requires_grad: bool | None = None,
    ) -> Self:  # fmt: skip
        """Normal with mean 0 and variance 1 (Box and Muller 1958).

        >>> Tensor.randn(2, 3).shape
        (2, 3)
        """
        wanted = dtype_or(dtype, dtypes.default_float)
        expect(wanted.is_float, f"randn(dtype={wanted.name})", "a float dtype", error=DTypeError)
        wide = wanted if wanted is dtypes.float64 else dtypes.float32
        first, second = _draw("randn", shape, device)
        radius = (cls._of(_uniform((first, second), wide)) * -1 + 1).log() * -2
        angle = cls._of(_uniform((second, first), wide)) * (2 * math.pi)
        drawn = (radius.sqrt() * angle.cos()).cast(wanted)
        return cls._made(drawn.node, requires_grad, drawn=True)

    @classmethod
    def randint(
        cls, *shape: Any, low: int = 0, high: int = 10, dtype: DTypeLike = None,
        device: str | None = None, requires_grad: bool | None = None,
    ) -> Self:  # fmt: skip
        """Integers in low … high − 1; int32, or int64 if they do not fit, unless dtype is given.

        ValueError unless 0 < high − low ≤ 2³², DTypeError for a dtype of floats.

        >>> Tensor.randint(4, low=3, high=4).tolist()
        [3, 3, 3, 3]
        """
        _check_sizes("randint", shape, (low, high) == (0, 10), "low=0, high=10")
        if not 0 < high - low <= 2**32:
            raise ValueError(f"randint(low={low}, high={high}): expected 0 < high − low ≤ 2³²")
        wanted = dtype_or(dtype, dtype_of("randint", (low, high - 1)))
        expect(wanted.is_int, f"randint(dtype={wanted.name})", "an integer dtype", error=DTypeError)
        check_holds("randint", wanted, low, high - 1)
        word = cls._of(_draw("randint", shape, device)[0]).cast(dtypes.uint64)
        below = (word * (high - low)) >> 32  # a product's upper half: as good as a division
        first = cls._of(build.const(low, wanted, (), below.device))
        return cls._made((below.cast(wanted) + first).node, requires_grad, drawn=True)

    @classmethod
    def normal(
        cls, *shape: Any, mean: Scalar = 0.0, std: Scalar = 1.0,
        requires_grad: bool | None = None, **options: Any,
    ) -> Self:  # fmt: skip
        """Normal with the given mean and standard deviation, which is at least 0.

        >>> Tensor.normal(2, mean=5.0, std=0.0).tolist()
        [5.0, 5.0]
        """
        _check_sizes("normal", shape, (mean, std) == (0, 1), "mean=0, std=1")
        expect(std >= 0, "normal", "std ≥ 0", error=ValueError, std=std)
        drawn = (cls.randn(checked_shape("normal", shape), **options) * std + mean).node
        return cls._made(drawn, requires_grad, drawn=True)

    @classmethod
    def uniform(
        cls, *shape: Any, low: Scalar = 0.0, high: Scalar = 1.0, dtype: DTypeLike = None,
        device: str | None = None, requires_grad: bool | None = None,
    ) -> Self:  # fmt: skip
        """Uniform in [low, high), also in dtypes of few digits; whole numbers for integer dtypes.

        ValueError if low > high, or if an end or high − low is infinite in the dtype; RangeError
        if an integer dtype does not hold them.

        >>> Tensor.uniform(2, low=1.0, high=1.0).tolist()
        [1.0, 1.0]
        """
        _check_sizes("uniform", shape, (low, high) == (0, 1), "low=0, high=1")
        wanted = dtype_or(dtype, dtypes.default_float)
        wide = dtypes.float64 if wanted.is_int or wanted is dtypes.float64 else dtypes.float32
        held = convert(low, wanted), convert(high, wanted), convert(high - low, wide)
        if not (low <= high and all(map(math.isfinite, held))):
            raise ValueError(
                f"uniform(low={low}, high={high}): expected low ≤ high, finite in {wanted.name}, "
                f"and high − low finite in {wide.name}; draw from a smaller interval and scale"
            )
        first = math.floor(low)
        check_holds("uniform", wanted, first, max(first, math.ceil(high) - 1))
        drawn = cls.rand(*shape, dtype=wide, device=device) * (high - low) + low
        if wanted.is_int:  # a cast would round towards 0
            drawn = drawn.floor()
        node = drawn.cast(wanted).node  # the result is the only tensor of the last node
        if low < high and not wanted.is_bool:  # rounding may have given `high`
            node = cls._of(node).minimum(below(high, wanted)).node
        return cls._made(node, requires_grad, drawn=True)

    @classmethod
    def scaled_uniform(cls, *shape: Any, **options: Any) -> Self:
        """Uniform in ±1/√(number of elements).

        >>> Tensor.scaled_uniform(2, 3).shape
        (2, 3)
        """
        bound = 1 / math.sqrt(max(numel(checked_shape("scaled_uniform", shape)), 1))
        return cls.uniform(*shape, low=-bound, high=bound, **options)

    @classmethod
    def glorot_uniform(cls, *shape: Any, **options: Any) -> Self:
        """Uniform in ±√(6/(shape[0] + inputs)) (Glorot and Bengio 2010).

        >>> Tensor.glorot_uniform(2, 3).shape
        (2, 3)
        """
        extents = checked_shape("glorot_uniform", shape)
        bound = math.sqrt(6 / max(numel(extents[:1]) + numel(extents[1:]), 1))
        return cls.uniform(*shape, low=-bound, high=bound, **options)

    @classmethod
    def kaiming_uniform(cls, *shape: Any, a: Scalar = 0.01, **options: Any) -> Self:
        """Uniform in ±√(6/((1 + a²)·inputs)), for leaky ReLU of slope a (He et al. 2015).

        >>> Tensor.kaiming_uniform(2, 3).shape
        (2, 3)
        """
        inputs = max(numel(checked_shape("kaiming_uniform", shape)[1:]), 1)
        bound = math.sqrt(6 / ((1 + a * a) * inputs))
        return cls.uniform(*shape, low=-bound, high=bound, **options)

    @classmethod
    def kaiming_normal(cls, *shape: Any, a: Scalar = 0.01, **options: Any) -> Self:
        """Normal with standard deviation √(2/((1 + a²)·inputs)), for leaky ReLU of slope a.

        >>> Tensor.kaiming_normal(2, 3).shape
        (2, 3)
        """
        inputs = max(numel(checked_shape("kaiming_normal", shape)[1:]), 1)
        return cls.normal(*shape, std=math.sqrt(2 / ((1 + a * a) * inputs)), **options)

    def rand_like(self, **options: Any) -> Self:
        """Uniform in [0, 1); shape, dtype and device of self.

        >>> Tensor([1.0, 2.0]).rand_like().shape
        (2,)
        """
        return self.rand(self.shape, **{"dtype": self.dtype, "device": self.raw.device, **options})

    def randn_like(self, **options: Any) -> Self:
        """Normal with mean 0 and variance 1; shape, dtype and device of self.

        >>> Tensor([1.0, 2.0]).randn_like().shape
        (2,)
        """
        return self.randn(self.shape, **{"dtype": self.dtype, "device": self.raw.device, **options})

    def bernoulli(self, p: Any = None) -> Self:
        """1 with the probability that self (or p) gives for the element, else 0; in self's dtype.

        DomainError if a probability is not in 0 … 1, raised when it is computed.

        >>> Tensor([0.0, 1.0]).bernoulli().tolist()
        [0.0, 1.0]
        """
        chance = (self if p is None else self._operand(p))._wide()
        chance = chance._within("bernoulli", "not a probability", "0 … 1")
        return (self.rand(self.shape, device=self.raw.device) < chance).cast(self.dtype).detach()

    def dropout(self, p: Scalar = 0.5) -> Self:
        """In training, each element set to 0 with probability p, and divided by 1 − p otherwise.

        Outside of it (see `train`), self. ValueError unless p is in 0 … 1.

        >>> Tensor([1.0, 2.0]).dropout(0.5).tolist()
        [1.0, 2.0]
        """
        check_share("dropout", p=p)
        if not type(self).training or p == 0:
            return self
        if p == 1:
            return self * 0
        word = self._new(_draw("dropout", self.shape, self.raw.device)[0])
        kept = word >= min(round(p * 2**32), 2**32 - 1)
        return kept.where(self * (1 / (1 - p)), 0)
