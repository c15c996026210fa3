"""Integer instructions that numpy has no operator for; registers are unsigned arrays."""

import numpy as np

from .lanes import SIGNED, UNSIGNED, Array

_ALL_64 = np.uint64(0xFFFFFFFFFFFFFFFF)


def shift_left(a: Array, amount: Array, bits: int) -> Array:
    """`shl`: amounts past the width give zero."""
    n = amount.astype(np.uint32)
    return np.where(n >= bits, np.zeros_like(a), a << (n % np.uint32(bits)).astype(a.dtype))


def shift_right(a: Array, amount: Array, bits: int, signed: bool) -> Array:
    """`shr`: amounts past the width give zeros, or the sign."""
    n = amount.astype(np.uint32)
    if signed:
        values = a.view(SIGNED[bits])
        shifted: Array = values >> np.minimum(n, np.uint32(bits - 1)).astype(values.dtype)
        return shifted.view(UNSIGNED[bits])
    return np.where(n >= bits, np.zeros_like(a), a >> (n % np.uint32(bits)).astype(a.dtype))


def divide(a: Array, b: Array, signed: bool, remainder: bool) -> Array:
    """`div` and `rem`, truncating; division by zero gives all ones, as the caller reports."""
    divisor = np.where(b == 0, a.dtype.type(1), b)
    if signed:
        kind = SIGNED[a.dtype.itemsize * 8]
        x, y = a.view(kind), divisor.view(kind)
        quotient = np.abs(x) // np.abs(y)
        quotient = np.where((x < 0) != (y < 0), -quotient, quotient)
        result = (x - quotient * y if remainder else quotient).astype(kind).view(a.dtype)
    else:
        result = a % divisor if remainder else a // divisor
    return np.where(b == 0, a.dtype.type(2 ** (8 * a.dtype.itemsize) - 1), result)


def add_with_carry(a: Array, b: Array, carry: Array) -> tuple[Array, Array]:
    """A + b + carry, and whether it overflows."""
    partial = a + b
    total = partial + carry.astype(a.dtype)
    return total, (partial < a) | (total < partial)


def subtract_with_borrow(a: Array, b: Array, borrow: Array) -> tuple[Array, Array]:
    """A - b - borrow, and whether it is negative."""
    return a - b - borrow.astype(a.dtype), (a < b) | ((a == b) & borrow)


def multiply_high(a: Array, b: Array, bits: int, signed: bool) -> Array:
    """`mul.hi`: the upper half of the product."""
    if bits <= 32:
        kind = (SIGNED if signed else UNSIGNED)[bits]
        wide = np.int64 if signed else np.uint64
        product = a.view(kind).astype(wide) * b.view(kind).astype(wide)
        return np.asarray(product >> wide(bits)).astype(UNSIGNED[bits])
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a_low, a_high, b_low, b_high = a & low, a >> half, b & low, b >> half
    middle = a_high * b_low + ((a_low * b_low) >> half)
    other = a_low * b_high + (middle & low)
    high = a_high * b_high + (middle >> half) + (other >> half)
    if signed:
        zero = np.uint64(0)
        high = high - np.where(a >> np.uint64(63), b, zero) - np.where(b >> np.uint64(63), a, zero)
    return np.asarray(high)


def extract_bits(a: Array, position: Array, length: Array, bits: int, signed: bool) -> Array:
    """`bfe`: a field of `length` bits from `position` on."""
    start, count = (position & np.uint32(255)).astype(np.int64), (length & np.uint32(255)).astype(np.int64)
    up = np.clip(bits - start - count, 0, bits - 1)
    down = np.clip(up + start, 0, bits - 1)
    left = a << up.astype(a.dtype)  # drops what is above the field
    zero = np.zeros_like(a)
    if signed:
        field = (left.view(SIGNED[bits]) >> down.astype(SIGNED[bits])).view(a.dtype)
        outside = np.where(a >> a.dtype.type(bits - 1), a.dtype.type(2**bits - 1), zero)
    else:
        field, outside = left >> down.astype(a.dtype), zero
    return np.where(count == 0, zero, np.where(start >= bits, outside, field))


def insert_bits(a: Array, b: Array, position: Array, length: Array, bits: int) -> Array:
    """`bfi`: b with the low `length` bits of a put at `position`."""
    start, count = (position & np.uint32(255)).astype(np.uint64), (length & np.uint32(255)).astype(np.uint64)
    shift = np.minimum(start, np.uint64(63))
    ones = (np.uint64(1) << np.minimum(count, np.uint64(63))) - np.uint64(1)
    field = np.where(count >= 64, _ALL_64, ones) << shift
    field = np.where(start >= bits, np.uint64(0), field)
    inserted = (b.astype(np.uint64) & ~field) | ((a.astype(np.uint64) << shift) & field)
    return np.asarray(inserted.astype(UNSIGNED[bits]))


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """`prmt.b32`: each byte of the result is one of the eight of a and b, or its sign."""
    pool = np.stack([(word >> np.uint32(8 * i)) & np.uint32(255) for word in (a, b) for i in range(4)])
    lanes = np.arange(len(a))
    result = np.zeros_like(a)
    for i in range(4):
        choice = (selector >> np.uint32(4 * i)) & np.uint32(15)
        byte = pool[(choice & np.uint32(7)).astype(np.int64), lanes]
        sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
        result |= np.where(choice & np.uint32(8), sign, byte) << np.uint32(8 * i)
    return result


def lookup3(a: Array, b: Array, c: Array, table: int) -> Array:
    """`lop3.b32`: any logical function of three inputs, by its truth table."""
    result = np.zeros_like(a)
    for k in range(8):
        if table >> k & 1:
            result |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    return result


def funnel_shift(low: Array, high: Array, amount: Array, left: bool, wrap: bool) -> Array:
    """`shf.b32`: 32 bits of two words shifted as one."""
    n = (amount & np.uint32(31)) if wrap else np.minimum(amount, np.uint32(32))
    both = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
    if left:
        return ((both << n.astype(np.uint64)) >> np.uint64(32)).astype(np.uint32)
    return np.asarray((both >> n.astype(np.uint64)).astype(np.uint32))


def count_ones(a: Array) -> Array:
    """`popc`."""
    return np.array([int(value).bit_count() for value in a], np.uint32)


def count_leading_zeros(a: Array, bits: int) -> Array:
    """`clz`."""
    return np.array([bits - int(value).bit_length() for value in a], np.uint32)


def find_leading_bit(a: Array, bits: int, signed: bool, shift: bool) -> Array:
    """`bfind`: place of the highest bit that is not the sign, or the shift that brings it to the top."""
    values = np.where(a >> a.dtype.type(bits - 1), ~a, a) if signed else a
    place = np.array([int(value).bit_length() - 1 for value in values], np.int64)
    found = np.where(place < 0, -1, bits - 1 - place if shift else place)
    return found.astype(np.int32).view(np.uint32)


def absolute_difference(a: Array, b: Array, c: Array, signed: bool) -> Array:
    """`sad`: |a - b| + c."""
    kind = SIGNED[8 * a.dtype.itemsize] if signed else a.dtype
    x, y = a.view(kind), b.view(kind)
    return np.asarray(np.where(x < y, b - a, a - b) + c)


def dot_bytes(a: Array, b: Array, c: Array, a_signed: bool, b_signed: bool) -> Array:
    """`dp4a`: the dot product of four bytes, and c."""
    x, y = (
        np.ascontiguousarray(each).view(np.int8 if signed else np.uint8).reshape(-1, 4).astype(np.int64)
        for each, signed in ((a, a_signed), (b, b_signed))
    )
    return np.asarray(((x * y).sum(1) + c.astype(np.int64)).astype(np.uint32))


def reverse_bits(a: Array, bits: int) -> Array:
    """`brev`."""
    return np.array([int(f"{int(value):0{bits}b}"[::-1], 2) for value in a], UNSIGNED[bits])
