"""Products in matrix registers (AMX), in LLVM IR; its intrinsics name the registers by number.

Each of the eight holds 16 rows of 64 bytes: 16 × 16 float32, or as many words of two bfloat16.
0 … 3 are the total's quarters, 4 and 5 rows of the left operand, 6 and 7 columns of the right.
"""

from __future__ import annotations

from minigrad.loops.nest import Matrix, MatrixProduct
from minigrad.render.llvm_index import IndexEmitter

SIDE = 16
_WORD = 4  # bytes of an element, whichever it is
_LEFT, _RIGHT = 4, 6

# Palette 1, 64 bytes a row and 16 rows for each register: see Intel's manual at LDTILECFG.
_COLUMN_BYTES = ", ".join(["i16 64"] * 8 + ["i16 0"] * 8)
_ROWS = ", ".join(["i8 16"] * 8 + ["i8 0"] * 8)
CONFIGURATION = (
    "@matrices = private constant { [16 x i8], [16 x i16], [16 x i8] } { [16 x i8] [i8 1"
    + ", i8 0" * 15
    + f"], [16 x i16] [{_COLUMN_BYTES}], [16 x i8] [{_ROWS}] }}, align 64\n"
    + "declare void @llvm.x86.ldtilecfg(ptr)\ndeclare void @llvm.x86.tilerelease()"
)
BEGIN = "  call void @llvm.x86.ldtilecfg(ptr @matrices)"
END = "  call void @llvm.x86.tilerelease()"


def emit_matrix_product(emitter: IndexEmitter, product: MatrixProduct) -> None:
    """The statement at the emitter's current level; the function begins and ends as above."""
    rows, columns = range(product.rows // SIDE), range(product.columns // SIDE)
    total, left, right = (emitter.pointer(m.array, m.index) for m in product.matrices)

    def do(name: str, *arguments: str) -> None:
        emitter.builder().do(f"llvm.x86.{name}", *arguments)

    def move(name: str, register: int, matrix: Matrix, base: str, row: str, column: str) -> None:
        here = emitter.builder()
        start = here.line(f"mul i64 {row}, {matrix.pitch}")
        place = here.line(f"add i64 {start}, {column}")
        at = here.line(f"getelementptr i32, ptr {base}, i64 {place}")
        do(name, f"i8 {register}", f"ptr {at}", f"i64 {_WORD * matrix.pitch}")

    quarters = [(2 * r + c, r, c) for r in rows for c in columns]
    for number, _, _ in quarters:
        do("tilezero", f"i8 {number}")
    with emitter.iterations("0", str(product.depth), SIDE, False) as k:
        for c in columns:
            move("tileloadd64", _RIGHT + c, product.right, right, k, str(c * SIDE))
        for r in rows:
            move("tileloadd64", _LEFT + r, product.left, left, str(r * SIDE), k)
        for number, r, c in quarters:
            do("tdpbf16ps", f"i8 {number}", f"i8 {_LEFT + r}", f"i8 {_RIGHT + c}")
    for number, r, c in quarters:
        move("tilestored64", number, product.total, total, str(r * SIDE), str(c * SIDE))
    emitter.forget((product.total.array,))
