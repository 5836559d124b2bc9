"""PTX that unpacks a word of eight four-bit numbers: into four registers of two 16-bit numbers each, of which columns i
and i + 4 share one, i from 0 to 3; or into two registers of four 8-bit numbers each, the even columns and the odd ones.

Few instructions are what it is about: they, and not the memory,
are what a multiprocessor of a Hopper GPU runs out of.
"""

from __future__ import annotations

import triton.language as tl

NUMBER = 0x81C081C0
"""Sign and magnitude of two e2m1 numbers, where bfloat16 has its sign, the end of its exponent and the beginning of its
mantissa: the numbers are then too small by 2^126."""


def _shifts(*places: int) -> int:
    """What multiplies a word to be the sum of it shifted left by each of the places."""
    return sum(1 << place for place in places)


def _e2m1(arranged: bool) -> list[list[str]]:
    """Lines that leave columns i and i + 4 of word $8 in u, as `NUMBER` says; arranged: of prepared weights."""
    if arranged:
        return [
            [f"and.b32 u, $8, {NUMBER:#x};"],
            ["shf.r.wrap.b32 u, $8, $8, 3;", f"and.b32 u, u, {NUMBER:#x};"],
            ["shf.r.wrap.b32 u, $8, $8, 6;", f"and.b32 u, u, {NUMBER:#x};"],
            ["and.b32 u, $8, 0x001B001B;", f"mul.lo.u32 u, u, {_shifts(2, 7, 12):#x};", f"and.b32 u, u, {NUMBER:#x};"],
        ]
    lines = []
    for i in range(4):
        low = 4 * (i % 2)
        word = "$8" if i < 2 else "w"
        lines.append([
            *(["shr.u32 w, $8, 8;"] if i == 2 else []),
            f"and.b32 u, {word}, {0x000F000F << low:#x};", f"mul.lo.u32 u, u, {_shifts(12 - low, 6 - low):#x};",
            f"and.b32 u, u, {NUMBER:#x};",
        ])  # fmt: skip
    return lines


def _int4(one: str) -> list[list[str]]:
    """Lines that leave columns i and i + 4 of word $8 in u: first one + code, by the end of the mantissa, and less
    one + 8."""
    return [
        [f"shr.u32 u, $8, {4 * i};", "lop3.b32 u, u, mask, magic, 0xEA;", f"fma.rn.{one} u, u, unit, bias;"]
        for i in range(4)
    ]


def _asm(
    kind: str, constants: dict[str, int], columns: list[list[str]], after: list[str] | None = None
) -> tl.constexpr:
    """The word $8 times its scale $9, which is there twice, as numbers $0 to $7: columns 0 4 1 5 2 6 3 7."""
    scaled = [[*column, *(after or []), f"fma.rn.{kind} u, u, $9, none;"] for column in columns]
    return _whole({"none": 0x80008000, **constants}, scaled)  # -0, which changes no sum


def _whole(constants: dict[str, int], columns: list[list[str]]) -> tl.constexpr:
    """Assembly of lines that leave columns i and i + 4 in u."""
    lines = [f".reg .b32 {', '.join(['u', 'v', 'w', *constants])};"]
    lines += [f"mov.b32 {name}, {value:#x};" for name, value in constants.items()]
    for i, column in enumerate(columns):
        lines += [*column, f"mov.b32 {{${2 * i}, ${2 * i + 1}}}, u;"]
    return tl.constexpr("{\n" + "\n".join(lines) + "\n}")


# float16 has two bits of exponent less above the mantissa: the magnitude moves left by three, and is too small by 2^14.
_TO_FLOAT16 = ["shl.b32 v, u, 3;", "and.b32 v, v, 0x0E000E00;", "and.b32 u, u, 0x80008000;", "or.b32 u, u, v;",
               "fma.rn.f16x2 u, u, unit, none;"]  # fmt: skip

MXFP4_BF16 = _asm("bf16x2", {}, _e2m1(False))
MXFP4_F16 = _asm("f16x2", {"unit": 0x74007400}, _e2m1(False), _TO_FLOAT16)
PREPARED_BF16 = _asm("bf16x2", {}, _e2m1(True))
PREPARED_F16 = _asm("f16x2", {"unit": 0x74007400}, _e2m1(True), _TO_FLOAT16)
# 1, 1024 and -1032 in float16.
INT4_F16 = _asm(
    "f16x2", {"mask": 0x000F000F, "unit": 0x3C003C00, "magic": 0x64006400, "bias": 0xE408E408}, _int4("f16x2")
)
INT4_SCALES = tl.constexpr(
    "{\n.reg .b32 s, k, none;\nmov.b32 none, 0x80008000;\nmov.b32 s, {$3, $3};\n"
    + "\n".join(
        f"mov.b32 k, {number * 0x10001:#x};\nfma.rn.bf16x2 ${i}, s, k, none;"
        for i, number in enumerate((0x7200, 0x7000, 0xB100))  # 2^101, 2^97, -2^-29
    )
    + "\n}"
)
"""Of a scale in bfloat16, each twice: what codes at place 0 of their half of a word are multiplied by, which as
bfloat16s are too small by 2^133, then those at place 4, and what takes off their zero point. All is / 2^32."""
INT4_BF16 = _whole(
    {},
    [
        [
            *(["shr.u32 w, $8, 8;"] if i == 2 else []),
            f"and.b32 u, {'$8' if i < 2 else 'w'}, {0xF000F << 4 * (i % 2):#x};",
            f"fma.rn.bf16x2 u, u, {'$10' if i % 2 else '$9'}, $11;",
        ]
        for i in range(4)
    ],
)

INT4_E4M3 = tl.constexpr(
    "{\n.reg .b32 w;\nshr.u32 w, $2, 4;\nand.b32 $0, $2, 0x0F0F0F0F;\nand.b32 $1, w, 0x0F0F0F0F;\n}"
)
"""Word $2 as registers $0 and $1 of e4m3 numbers, which are the codes, too small by 2^9: exponents 0 and 1 have one
step."""


def _e5m2() -> tl.constexpr:
    """Prepared word $2 times the float16 $6, which is there twice, as registers $0 and $1 of e5m2 numbers. They are the
    high bytes of float16 numbers, which are too small by 2^14 as they are cut out of the word."""
    magnitude, sign = "0x0E000E00", "0x80008000"
    columns = {
        "a": ["shl.b32 t, $2, 3;", f"and.b32 a, $2, {sign};", f"lop3.b32 a, t, {magnitude}, a, 0xEA;"],
        "b": ["shf.r.wrap.b32 b, $2, $2, 3;", f"and.b32 b, b, {sign};", f"lop3.b32 b, $2, {magnitude}, b, 0xEA;"],
        "c": ["shf.r.wrap.b32 c, $2, $2, 6;", f"and.b32 c, c, {sign};", "shr.u32 t, $2, 3;",
              f"lop3.b32 c, t, {magnitude}, c, 0xEA;"],
        "d": ["shl.b32 t, $2, 12;", f"and.b32 t, t, {sign};", "and.b32 d, $2, 0x00130013;",
              f"mul.lo.u32 d, d, {_shifts(10, 5):#x};", f"lop3.b32 d, d, {magnitude}, t, 0xEA;"],
    }  # fmt: skip
    lines = [".reg .b32 a, b, c, d, t, none;", "mov.b32 none, 0x80008000;"]  # -0, which changes no sum
    for name, column in columns.items():
        lines += [*column, f"fma.rn.f16x2 {name}, {name}, $6, none;"]
    lines += ["prmt.b32 $0, a, c, 0x7351;", "prmt.b32 $1, b, d, 0x7351;"]
    return tl.constexpr("{\n" + "\n".join(lines) + "\n}")


MXFP4_E5M2 = _e5m2()
