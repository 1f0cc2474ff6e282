"""Functions on tiles that several Triton kernels share.

A tile is a block of a matrix in registers. Sizes of tiles are powers of two; K = 96 is read as 64 + 32 columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from interlace.ops.core import gpu

# Numbers of heads, tokens and the like: Triton must not compile a kernel anew because one of them is 1 or a multiple of
# 16. So the kernel that the self-check took is the one that serves.
COUNTS = ("H", "G", "total", "heads", "tokens", "turns", "programs", "count", "experts", "rows")
# Products of float32 tiles are exact: one tf32 product loses 13 bits, and three took more registers than there are.
PRECISION = tl.constexpr("ieee")
# The interpreter multiplies the bit patterns of bfloat16 (triton-lang/triton#11584), so there tiles are widened.
WIDEN = tl.constexpr(gpu.INTERPRETED)


@triton.jit
def dot(a, b):
    """a @ b, in float32."""
    if WIDEN:
        return tl.dot(a.to(tl.float32), b.to(tl.float32))
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), by an exponential that cannot overflow."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def softplus(x):
    """log(1 + exp(x)); x itself above 20, as torch has it."""
    e = tl.exp(tl.minimum(x, 20.0))
    u = 1.0 + e
    d = u - 1.0
    return tl.where(x > 20.0, x, tl.where(d == 0.0, e, tl.log(u) * (e / tl.where(d == 0.0, 1.0, d))))


@triton.jit
def read_rows(base, rows, stride, FIRST: tl.constexpr, SIZE: tl.constexpr, END: tl.constexpr):
    """Return the tile [rows, SIZE] of a matrix whose rows lie `stride` apart; zeros in columns from END on."""
    cols = FIRST + tl.arange(0, SIZE)
    places = base + rows[:, None] * stride + cols[None, :]
    if FIRST + SIZE <= END:
        return tl.load(places)
    return tl.load(places, mask=(cols < END)[None, :], other=0.0)


@triton.jit
def stretch_of(stretch, sequences, offsets, i):
    """Return what the tables of `tables.Chunks` say of stretch i of a scan.

    These are its first chunk, one past its last, the state it starts from (-1 for the sequence's first) and its
    sequence; of the sequence, the first chunk, one past the last, the first token in int64, and how many tokens.
    """
    first = tl.load(stretch + 4 * i)
    last = tl.load(stretch + 4 * i + 1)
    slot = tl.load(stretch + 4 * i + 2)
    n = tl.load(stretch + 4 * i + 3)
    start = tl.load(offsets + n).to(tl.int64)
    length = (tl.load(offsets + n + 1) - start).to(tl.int32)
    return first, last, slot, n, tl.load(sequences + 4 * n), tl.load(sequences + 4 * n + 1), start, length


@triton.jit
def read_state(at, step, k1, k2, in1, in2, K2: tl.constexpr):
    """Return a state [V, K] in float32 as two tiles, of channels k1 and k2; the second is 0 if K2 is.

    at: pointers [V, 1]; channels lie `step` apart; in1, in2: which entries there are, the others are 0.
    """
    S1 = tl.load(at + k1[None, :] * step, mask=in1, other=0.0).to(tl.float32)
    S2 = tl.zeros(in2.shape, tl.float32)
    if K2 > 0:
        S2 = tl.load(at + k2[None, :] * step, mask=in2, other=0.0).to(tl.float32)
    return S1, S2


@triton.jit
def write_state(at, step, k1, k2, in1, in2, S1, S2, K2: tl.constexpr):
    """Write a state [V, K] from two tiles; see `read_state`."""
    tl.store(at + k1[None, :] * step, S1.to(at.dtype.element_ty), mask=in1)
    if K2 > 0:
        tl.store(at + k2[None, :] * step, S2.to(at.dtype.element_ty), mask=in2)


@triton.jit
def inverse(N, C: tl.constexpr, LEVELS: tl.constexpr, NARROW: tl.constexpr):
    """Return (I - N)^-1 for strictly lower triangular N [C, C] in float32, C = 2^LEVELS.

    Blocks of s rows are inverted already; two of them and their corner B become [[P, 0], [Q B P, Q]]. NARROW takes the
    products in float16: with unit keys and beta in [0, 2] no entry of the inverse exceeds 2.
    """
    i = tl.arange(0, C)[:, None]
    j = tl.arange(0, C)[None, :]
    apart = i ^ j
    X = tl.where(apart == 0, 1.0, 0.0) + tl.where(apart == 1, N, 0.0)
    n = N.to(tl.float16) if NARROW else N
    for level in tl.static_range(1, LEVELS):
        x = X.to(tl.float16) if NARROW else X
        corner = tl.where((apart >= (1 << level)) & (apart < (2 << level)), dot(x, n), 0.0)
        X += dot(corner.to(x.dtype), x)
    return X
