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
    + f"], [16 x i16] [{_COLUMN_BYTES}], [16 x i8] [{_ROWS}] }}, align 64"
)
DECLARATIONS = (
    "declare void @llvm.x86.ldtilecfg(ptr)",
    "declare void @llvm.x86.tilerelease()",
    "declare void @llvm.x86.tilezero(i8)",
    "declare void @llvm.x86.tileloadd64(i8, ptr, i64)",
    "declare void @llvm.x86.tilestored64(i8, ptr, i64)",
    "declare void @llvm.x86.tdpbf16ps(i8, i8, i8)",
)
BEGIN = "  call void @llvm.x86.ldtilecfg(ptr @matrices)"
END = "  call void @llvm.x86.tilerelease()"


def emit_matrix_product(emitter: IndexEmitter, product: MatrixProduct) -> None:
    """The statement at the emitter's current level; the function begins and ends as above."""
    rows, columns = range(product.rows // SIDE), range(product.columns // SIDE)
    total, left, right = (emitter.pointer(m.array, m.index) for m in product.matrices)
    emitter.declarations.update(DECLARATIONS)

    def line(text: str) -> None:
        emitter.builder().lines.append(f"  call void @llvm.x86.{text}")

    def address(matrix: Matrix, base: str, row: str, column: str) -> str:
        here = emitter.builder()
        start = here.line(f"mul i64 {row}, {matrix.pitch}")
        place = here.line(f"add i64 {start}, {column}")
        return here.line(f"getelementptr i32, ptr {base}, i64 {place}")

    quarters = [(2 * r + c, r, c) for r in rows for c in columns]
    for number, _, _ in quarters:
        line(f"tilezero(i8 {number})")
    with emitter.iterations("0", str(product.depth), SIDE, False) as k:
        for c in columns:
            place = address(product.right, right, k, str(c * SIDE))
            line(f"tileloadd64(i8 {_RIGHT + c}, ptr {place}, i64 {_WORD * product.right.pitch})")
        for r in rows:
            place = address(product.left, left, str(r * SIDE), k)
            line(f"tileloadd64(i8 {_LEFT + r}, ptr {place}, i64 {_WORD * product.left.pitch})")
        for number, r, c in quarters:
            line(f"tdpbf16ps(i8 {number}, i8 {_LEFT + r}, i8 {_RIGHT + c})")
    for number, r, c in quarters:
        place = address(product.total, total, str(r * SIDE), str(c * SIDE))
        line(f"tilestored64(i8 {number}, ptr {place}, i64 {_WORD * product.total.pitch})")
    emitter.forget((product.total.array,))
