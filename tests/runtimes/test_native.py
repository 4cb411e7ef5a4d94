"""A subset of Python, translated to machine code, keeps its meaning."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Callable

import pytest

from minigrad.runtimes.jit_compiler import host_compiler
from minigrad.runtimes.native import translate


def function(text: str, **constants: int) -> Callable[..., int]:
    """The last function of a text, compiled."""
    name = text.rpartition("def ")[2].partition("(")[0]
    count = text.rpartition("def ")[2].partition(")")[0].count(",") + 1
    addresses, code = host_compiler().compile(translate(text, constants), [name])
    made = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * count)(addresses[name])
    made.keep = code  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize("x, y", [(0, 1), (7, 3), (3, 7), (5, 5), (1 << 40, 12345), (-3, 5)])
def test_arithmetic(x: int, y: int) -> None:
    for text in ("x + y * 3 - 2", "x & y | 8 ^ x", "x << 3", "min(x, y) - max(x, -y)"):
        assert function(f"def f(x, y):\n    return {text}")(x, y) == eval(text), text
    if x >= 0:
        for text in ("x // y", "x % y", "x >> 2"):
            assert function(f"def f(x, y):\n    return {text}")(x, y) == eval(text), text
    assert function("def f(x, y):\n    return x >> 60")(-1, y) == 15, "shifts are unsigned"
    assert function("def f(x):\n    return leading_zeros(x)")(5) == 61


@pytest.mark.parametrize("test", [
    "x < y", "x <= y and y < 9", "x == 3 or not y > 5", "not (x != y or x)", "x",
    "not x and y >= 0", "(x or y) and not (x and y)",
])  # fmt: skip
def test_conditions(test: str) -> None:
    made = function(f"def f(x, y):\n    if {test}:\n        return 1\n    else:\n        return 0")
    for x in (-2, 0, 3, 5):
        for y in (-2, 0, 3, 9):
            assert made(x, y) == bool(eval(test)), (x, y)


def test_loops_swap_variables_and_end_where_they_are_told() -> None:
    fibonacci = function("""
def _next(a, b):
    return a + b

def f(n):
    a, b = 0, 1
    while 1:
        if not n:
            break
        a, b = b, _next(a, b)
        n -= 1
    return a
""")
    assert [fibonacci(n) for n in (0, 1, 2, 10, 50)] == [0, 1, 1, 55, 12586269025]
    assert function("def f(x):\n    x += STEP", STEP=3)(4) == 0, "without return it is 0"


def test_memory_of_64_and_of_32_bits() -> None:
    words = (ctypes.c_int32 * 4)(1, -2, 3, -4)
    text = """
def f(at):
    store32(at, load32(at + 4) - 1)
    old = add32(at + 8, 5) + 100 * swap32(at + 12, 7)
    poke(at, peek(at))
    return old
"""
    assert function(text)(ctypes.addressof(words)) == 3 - 400
    assert list(words) == [-3, -2, 8, 7]


@pytest.mark.parametrize("nbytes", [0, 1, 64, 200, 4096 + 63])
def test_bytes_are_copied_past_the_caches(nbytes: int) -> None:
    given = bytes(i % 251 for i in range(nbytes))
    source = ctypes.create_string_buffer(b"x" + given)  # not aligned
    room = ctypes.create_string_buffer(64 + nbytes + 64)
    start = ctypes.addressof(room) + -ctypes.addressof(room) % 64
    text = """
def f(to, source, nbytes):
    while nbytes >= 64:
        stream(to, source)
        to, source, nbytes = to + 64, source + 64, nbytes - 64
    copy(to, source, nbytes)
    fence()
"""
    assert "!nontemporal" in translate(text, {})
    function(text)(start, ctypes.addressof(source) + 1, nbytes)
    assert ctypes.string_at(start, nbytes + 1) == given + b"\0"


def test_calls_by_address() -> None:
    twice = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(lambda x: 2 * x)
    address = ctypes.cast(twice, ctypes.c_void_p).value
    assert function("def f(x):\n    return call(TWICE, x + 1)", TWICE=address)(20) == 42


@pytest.mark.parametrize("text", ["for i in x:\n        f(i)", "x.y = 1", "return x < 1", "x = ''"])
def test_what_it_does_not_know_is_refused(text: str) -> None:
    with pytest.raises(SyntaxError, match=r"unsupported .* in native code"):
        translate(f"def f(x):\n    {text}", {})


def test_threads_may_translate_at_once() -> None:
    """Also if one of them collects garbage, and a destructor lets the others run."""
    errors: list[BaseException] = []

    class Ends:
        def __del__(self) -> None:
            time.sleep(0)

    def work() -> None:
        try:
            for _ in range(400):
                one = Ends()
                one.itself = one  # type: ignore[attr-defined]
                del one
                translate("def go():\n    return call(1, 2, 3, 4, 5)", {})
        except BaseException as error:
            errors.append(error)

    before = gc.get_threshold()
    gc.set_threshold(5, 2, 2)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    finally:
        gc.set_threshold(*before)
    assert not errors
