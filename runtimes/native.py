"""A small part of Python as LLVM IR, for code that runs without the interpreter and is no kernel.

All values are 64-bit integers, also addresses. A text has functions; these have assignments,
`while`, `if`, `break`, `return` and calls. Sums and products wrap; `//`, `%` and `>>` are unsigned,
comparisons signed; `and`, `or` and `not` are allowed in conditions only. A function that ends
without `return` gives 0; one whose name begins with _ is visible in its text only.

Other functions that can be called: `load(at)`, `store(at, x)`; for memory that other threads use,
`peek(at)`, `poke(at, x)`, and `add(at, x)`, `swap(at, x)`, which return the old value, all
sequentially consistent; each also as `load32` … for signed 32 bits. `copy(at, source, bytes)`;
`stream(at, source)`: 64 bytes past the caches, to a multiple of 64; `fence()` after such.
`call(function, …)` calls an address. `pause`; and those of `_FUNCTIONS`.
"""

from __future__ import annotations

import ast
import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from minigrad.locks import new_rlock

_OPERATORS = {
    "Add": "add", "Sub": "sub", "Mult": "mul", "FloorDiv": "udiv", "Mod": "urem", "BitAnd": "and",
    "BitOr": "or", "BitXor": "xor", "LShift": "shl", "RShift": "lshr",
}  # fmt: skip
_TESTS = {"Eq": "eq", "NotEq": "ne", "Lt": "slt", "LtE": "sle", "Gt": "sgt", "GtE": "sge"}
_MEMORY = {
    "load": "load {kind}, ptr {at}",
    "store": "store {kind} {x}, ptr {at}",
    "peek": "load atomic {kind}, ptr {at} seq_cst, align {size}",
    "poke": "store atomic {kind} {x}, ptr {at} seq_cst, align {size}",
    "add": "atomicrmw add ptr {at}, {kind} {x} seq_cst",
    "swap": "atomicrmw xchg ptr {at}, {kind} {x} seq_cst",
}
# The name in C or LLVM; result and arguments.
_FUNCTIONS = {
    "min": ("llvm.smin.i64", "i64", "i64, i64"),
    "max": ("llvm.smax.i64", "i64", "i64, i64"),
    "leading_zeros": ("llvm.ctlz.i64", "i64", "i64, i1"),
    "copy": ("memcpy", "i64", "i64, i64, i64"),
    "syscall": ("syscall", "i64", "i64, ..."),
    "sched_getcpu": ("sched_getcpu", "i32", ""),
}
# Python 3.11 and 3.12 confuse the recursion depths of two threads that parse, if one of them
# collects garbage and lets the other run: "AST constructor recursion depth mismatch".
_parsing = new_rlock()


def function(address: int, count: int) -> Any:
    """The function at an address, which takes so many integers, for Python; without the GIL."""
    return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * count)(address)


def translate(text: str, constants: Mapping[str, int], pause: str = "") -> str:
    """The LLVM IR of a text. constants: names of numbers. pause: an instruction's name."""
    declarations: set[str] = set()
    functions = []
    with _parsing:
        parsed = ast.parse(text)
    for tree in parsed.body:
        assert isinstance(tree, ast.FunctionDef)
        functions += _Function(tree, constants, pause, declarations).lines
    return "\n".join([*sorted(declarations), *functions, ""])


class _Function:
    """The lines of one function. Variables are on the stack, until LLVM moves them to registers."""

    def __init__(
        self, tree: ast.FunctionDef, constants: Mapping[str, int], pause: str, declared: set[str]
    ) -> None:
        self.constants, self.pause, self.declared = constants, pause, declared
        self.variables: set[str] = set()
        self.lines: list[str] = []
        self.after: list[str] = []  # for each open loop, the label to which `break` jumps
        self._count = 0
        names = [argument.arg for argument in tree.args.args]
        for name in names:
            self.assign(name, f"%{name}.given")
        self.body(tree.body)
        self.lines.append("  ret i64 0")
        places = [f"  %{name} = alloca i64" for name in sorted(self.variables)]
        given = ", ".join(f"i64 %{name}.given" for name in names)
        scope = "internal " if tree.name.startswith("_") else ""
        head = f"define {scope}i64 @{tree.name}({given}) nounwind {{"
        self.lines = [head, "entry:", *places, *self.lines, "}"]

    def line(self, text: str) -> str:
        """Append an instruction with a result; returns its name."""
        self._count += 1
        self.lines.append(f"  %v{self._count} = {text}")
        return f"%v{self._count}"

    def labels(self, *stems: str) -> list[str]:
        """New labels."""
        self._count += 1
        return [f"{stem}{self._count}" for stem in stems]

    def go(self, label: str, begin: str) -> None:
        """Jump to a label, and begin another block."""
        self.lines += [f"  br label %{label}", f"{begin}:"]

    def assign(self, name: str, value: str) -> None:
        """Set a variable."""
        self.variables.add(name)
        self.lines.append(f"  store i64 {value}, ptr %{name}")

    # ---- statements ----

    def body(self, statements: Sequence[ast.stmt]) -> None:
        """Emit statements in order."""
        for statement in statements:
            self.statement(statement)

    def statement(self, tree: ast.stmt) -> None:
        """Emit one statement."""
        match tree:
            case ast.Assign([ast.Tuple(targets)], ast.Tuple(values)):
                for target, value in zip(targets, [self.value(v) for v in values], strict=True):
                    self.assign(ast.unparse(target), value)
            case ast.Assign([ast.Name(name)], value):
                self.assign(name, self.value(value))
            case ast.AugAssign(ast.Name(name) as target, operator, value):
                self.assign(name, self.value(ast.BinOp(target, operator, value)))
            case ast.While(test, body):
                again, inside, after = self.labels("while", "do", "after")
                self.go(again, again)
                self.branch(test, inside, after)
                self.lines.append(f"{inside}:")
                self.after.append(after)
                self.body(body)
                self.after.pop()
                self.go(again, after)
            case ast.If(test, body, otherwise):
                then, other, after = self.labels("then", "else", "after")
                self.branch(test, then, other)
                self.lines.append(f"{then}:")
                self.body(body)
                self.go(after, other)
                self.body(otherwise)
                self.go(after, after)
            case ast.Break():
                self.go(self.after[-1], *self.labels("never"))
            case ast.Return(ast.expr() as value):
                self.lines.append(f"  ret i64 {self.value(value)}")
                self.lines.append(f"{self.labels('never')[0]}:")
            case ast.Expr(ast.Call() as call):
                self.call(call)
            case _:
                raise SyntaxError(f"unsupported statement in native code: {ast.unparse(tree)!r}")

    def branch(self, test: ast.expr, then: str, other: str) -> None:
        """Jump to one of two labels, by a test."""
        match test:
            case ast.UnaryOp(ast.Not(), operand):
                self.branch(operand, other, then)
            case ast.BoolOp(operator, tests):
                for part in tests[:-1]:
                    (following,) = self.labels("test")
                    if isinstance(operator, ast.And):
                        self.branch(part, following, other)
                    else:
                        self.branch(part, then, following)
                    self.lines.append(f"{following}:")
                self.branch(tests[-1], then, other)
            case _:
                name, sides = "ne", [test, ast.Constant(0)]
                if isinstance(test, ast.Compare):
                    (comparison,), sides = test.ops, [test.left, *test.comparators]
                    name = _TESTS[type(comparison).__name__]
                left, right = map(self.value, sides)
                answer = self.line(f"icmp {name} i64 {left}, {right}")
                self.lines.append(f"  br i1 {answer}, label %{then}, label %{other}")

    # ---- values ----

    def value(self, tree: ast.expr) -> str:
        """The text of an expression's value."""
        match tree:
            case ast.Constant(int(number)):
                return str(number)
            case ast.Name(name):
                known = self.constants.get(name)
                return self.line(f"load i64, ptr %{name}") if known is None else str(known)
            case ast.UnaryOp(ast.USub(), operand):
                return self.line(f"sub i64 0, {self.value(operand)}")
            case ast.BinOp(left, operator, right):
                name = _OPERATORS[type(operator).__name__]
                return self.line(f"{name} i64 {self.value(left)}, {self.value(right)}")
            case ast.Call():
                return self.call(tree)
            case _:
                raise SyntaxError(f"unsupported expression in native code: {ast.unparse(tree)!r}")

    def call(self, tree: ast.Call) -> str:
        """Emit a call; returns the text of its result."""
        name, args = ast.unparse(tree.func), [self.value(arg) for arg in tree.args]
        if name.removesuffix("32") in _MEMORY:
            return self._memory(name, *args)
        given = ", ".join(f"i64 {arg}" for arg in args)
        if name == "pause":
            self.lines.append(f'  call void asm sideeffect "{self.pause}", ""()')
        elif name == "fence":
            self.lines.append("  fence seq_cst")
        elif name == "stream":
            at, source = (self.line(f"inttoptr i64 {arg} to ptr") for arg in args)
            x = self.line(f"load <8 x i64>, ptr {source}, align 1")
            self.lines.append(f"  store <8 x i64> {x}, ptr {at}, align 64, !nontemporal !0")
            self.declared.add("!0 = !{i32 1}")
        elif name == "call":
            function = self.line(f"inttoptr i64 {args[0]} to ptr")
            return self.line(f"call i64 {function}({given.partition(', ')[2]})")
        elif name in _FUNCTIONS:
            symbol, result, kinds = _FUNCTIONS[name]
            self.declared.add(f"declare {result} @{symbol}({kinds}) nonlazybind")
            given += ", i1 true" if name == "leading_zeros" else ""
            found = self.line(f"call {result} ({kinds}) @{symbol}({given})")
            return found if result == "i64" else self.line(f"sext {result} {found} to i64")
        else:
            return self.line(f"call i64 @{name}({given})")
        return "0"

    def _memory(self, name: str, at: str, x: str = "") -> str:
        template, short = _MEMORY[name.removesuffix("32")], name.endswith("32")
        at = self.line(f"inttoptr i64 {at} to ptr")
        x = self.line(f"trunc i64 {x} to i32") if x and short else x
        text = template.format(kind="i32" if short else "i64", size=4 if short else 8, at=at, x=x)
        if text.startswith("store"):
            self.lines.append(f"  {text}")
            return "0"
        found = self.line(text)
        return self.line(f"sext i32 {found} to i64") if short else found
