"""float16 conversions for processors that have none (x86 before F16C).

There LLVM calls functions of the compiler's own library, which a Python process does not contain.
These are ours, in LLVM IR, under the names and with the calling convention that LLVM expects.
"""

from __future__ import annotations

FUNCTIONS = frozenset({"__extendhfsf2", "__truncsfhf2"})

# half → float: the bits moved to a float's places are the value times 2⁻¹¹², subnormals included;
# infinities and NaNs get the exponent that they have in a float.
# float → half, to the nearest and to even on a tie. Normal numbers: correct the exponent by 112
# and round by adding to the bits, where a carry runs into the exponent as it should. Subnormal
# ones: the sum with 0.5 has its last bit where theirs is, so the addition does the rounding.
DEFINITIONS = """
define linkonce_odr float @__extendhfsf2(half %x) nounwind {
  %short = bitcast half %x to i16
  %bits = zext i16 %short to i32
  %sign.low = and i32 %bits, 32768
  %sign = shl i32 %sign.low, 16
  %magnitude = and i32 %bits, 32767
  %moved = shl i32 %magnitude, 13
  %small = bitcast i32 %moved to float
  %scaled = fmul float %small, 0x46F0000000000000
  %finite = bitcast float %scaled to i32
  %special = or i32 %moved, 2139095040
  %is.finite = icmp ult i32 %magnitude, 31744
  %chosen = select i1 %is.finite, i32 %finite, i32 %special
  %signed = or i32 %chosen, %sign
  %result = bitcast i32 %signed to float
  ret float %result
}
define linkonce_odr half @__truncsfhf2(float %x) nounwind {
  %bits = bitcast float %x to i32
  %sign.high = lshr i32 %bits, 16
  %sign = and i32 %sign.high, 32768
  %magnitude = and i32 %bits, 2147483647
  %rebased = sub i32 %magnitude, 939524096
  %last.low = lshr i32 %magnitude, 13
  %last = and i32 %last.low, 1
  %half.step = add i32 %last, 4095
  %rounded = add i32 %rebased, %half.step
  %normal = lshr i32 %rounded, 13
  %is.over = icmp ugt i32 %normal, 31744
  %bounded = select i1 %is.over, i32 31744, i32 %normal
  %absolute = bitcast i32 %magnitude to float
  %sum = fadd float %absolute, 5.0e-01
  %sum.bits = bitcast float %sum to i32
  %subnormal = sub i32 %sum.bits, 1056964608
  %is.subnormal = icmp ult i32 %magnitude, 947912704
  %number = select i1 %is.subnormal, i32 %subnormal, i32 %bounded
  %payload = and i32 %last.low, 511
  %nan = or i32 %payload, 32256
  %is.nan = icmp ugt i32 %magnitude, 2139095040
  %chosen = select i1 %is.nan, i32 %nan, i32 %number
  %signed = or i32 %chosen, %sign
  %short = trunc i32 %signed to i16
  %result = bitcast i16 %short to half
  ret half %result
}
"""
