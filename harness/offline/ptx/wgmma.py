"""wgmma: asynchronous products on tensor cores of a warp group (128 threads), from sm_90 on."""

from collections import deque

import numpy as np

from .lanes import SHARED_BASE, Array, CtaLanes, Mask
from .mma import ELEMENT_BYTES, accumulated, accumulators, element_values
from .shared_memory import SharedMemory
from .tensor_maps import swizzled
from .unsupported import UnsupportedPtxError
from .violations import Kind

_GROUP_WARPS = 4
_GROUP_THREADS = 128
_SWIZZLE_MODES = {0: 0, 1: 3, 2: 2, 3: 1}  # of a matrix descriptor, to 0 none, 1, 2, 3 for 32, 64, 128 bytes


class Wgmma:
    """The products of one CTA's warp groups. A product's registers hold its result at once."""

    def __init__(self, lanes: CtaLanes, shared: SharedMemory) -> None:
        self._lanes, self._shared = lanes, shared
        groups = lanes.warps // _GROUP_WARPS
        self._open: list[list[Array]] = [[] for _ in range(groups)]  # bytes of shared memory that they read
        self._groups: list[deque[list[Array]]] = [deque() for _ in range(groups)]
        self._committed = 0
        self._accumulators: dict[int, int] = {}  # register: the group of products that writes it
        self._operands: dict[int, int] = {}  # register: the group of products that reads it
        self._fenced = False
        self._unfenced: set[int] = set()  # registers written since the last wgmma.fence

    def product(
        self,
        shape: tuple[int, int],
        types: tuple[str, str, str],
        sums: list[Array],
        a: list[Array] | Array,
        b: Array,
        keep: Array,
        sign: int,
        transposed: list[bool],
        mask: Mask,
        line: int,
    ) -> list[Array]:
        """The registers of sign A B (+ the sums, if `keep`), shape m64nN with (N, K) given.

        Args:
            shape: N and K.
            types: of A, B and the sums.
            sums: accumulators.
            a: registers of A, or its matrix descriptor.
            b: matrix descriptor of B.
            keep: whether the accumulators are added (`scale-d`).
            sign: 1 or -1.
            transposed: whether A and B lie with their other dimension innermost.
            mask: active lanes.
            line: of the PTX.
        """
        results = [np.array(each) for each in sums]
        active = set(self._lanes.active_warps(mask, line).tolist())
        for group in range(self._lanes.warps // _GROUP_WARPS):
            warps = np.arange(_GROUP_WARPS * group, _GROUP_WARPS * (group + 1))
            if not active & set(warps.tolist()):
                continue
            if not active >= set(warps.tolist()):
                self._lanes.report(Kind.PARTIAL_WARP, line, "a warp group", warp=int(warps[0]))
                continue
            lanes = slice(_GROUP_THREADS * group, _GROUP_THREADS * (group + 1))
            n, k = shape
            if isinstance(a, list):
                left = _register_operand([each[lanes] for each in a], types[0], k)
            else:
                left = self._matrix(a[lanes], (64, k), types[0], transposed[0], warps, line)
            right = self._matrix(b[lanes], (n, k), types[1], transposed[1], warps, line)
            result = sign * (left @ right.T)
            # Register pairs 2 j and 2 j + 1 of warp w: rows 16 w + g and + 8, columns from 8 j on.
            result = result.reshape(4, 2, 8, n // 8, 4, 2).transpose(0, 2, 4, 3, 1, 5)
            if keep[lanes][0]:
                before = accumulated([each[lanes] for each in sums], types[2], _GROUP_WARPS)
                result = result + before.reshape(result.shape)
            for register, words in zip(results, accumulators(result, types[2]), strict=True):
                register[lanes] = words
        return results

    def _matrix(
        self, descriptors: Array, shape: tuple[int, int], kind: str, transposed: bool, warps: Array, line: int
    ) -> Array:
        """Float64 [rows, k] of the matrix in shared memory that a descriptor names."""
        if (descriptors != descriptors[0]).any():
            detail = "matrix descriptor that differs between lanes"
            self._lanes.report(Kind.DESCRIPTOR, line, detail, warp=int(warps[0]))
        size = ELEMENT_BYTES[kind]
        offset = matrix_offsets(int(descriptors[0]), shape, size, transposed)
        if offset.min() < 0 or offset.max() >= self._shared.size:
            outside = int(offset.min()) if offset.min() < 0 else int(offset.max())
            self._lanes.report(Kind.OUTSIDE_SHARED, line, "wgmma", shared_address=outside, warp=int(warps[0]))
            offset = np.clip(offset, 0, self._shared.size - 1)
        self._shared.check_bulk_read(offset.reshape(-1), warps, line, "wgmma")
        read = np.unique(offset)
        self._shared.async_readers[read] += np.uint16(1)
        self._open[int(warps[0]) // _GROUP_WARPS].append(read)
        return element_values(self._shared.data[offset], kind)[..., 0]

    # Registers in flight --------------------------------------------------------------------------------

    def started(self, accumulators: list[int], operands: list[int], line: int) -> None:
        """A product writes these registers, and reads those, until it is waited for.

        Its own accumulators may be in flight, but not the registers that it takes its operand from.
        """
        self.accumulator_used(operands, [], line)
        if not self._fenced or not self._unfenced.isdisjoint([*accumulators, *operands]):
            what = "written with no wgmma.fence since" if self._fenced else "with no wgmma.fence before"
            self._lanes.report(Kind.WGMMA_REGISTER, line, f"registers {what}")
        self._accumulators.update(dict.fromkeys(accumulators, self._committed + 1))
        self._operands.update(dict.fromkeys(operands, self._committed + 1))

    def accumulator_moved(self, destination: int, source: int) -> None:
        """A mov only renames a register in flight, if the compiler is right: the copy is in flight too."""
        if source in self._accumulators:
            self._accumulators[destination] = self._accumulators[source]
        else:
            self._accumulators.pop(destination, None)

    def accumulator_used(self, read: list[int], written: list[int], line: int) -> None:
        """Reports reads and writes of accumulators in flight."""
        self._unfenced.update(written)
        for what, registers in (("read", read), ("overwritten", written)):
            if any(register in self._accumulators for register in registers):
                self._lanes.report(Kind.WGMMA_REGISTER, line, f"accumulator {what} before its wait")

    def operand_written(self, registers: list[int], line: int) -> None:
        """Reports writes of registers that a product in flight reads."""
        self._unfenced.update(registers)
        if any(register in self._operands for register in registers):
            self._lanes.report(Kind.WGMMA_REGISTER, line, "operand overwritten before its wait")

    def fence(self, _mask: Mask, _line: int) -> None:
        """wgmma.fence: orders writes of registers before the products that use them."""
        self._fenced = True
        self._unfenced.clear()

    def commit(self, _mask: Mask, _line: int) -> None:
        """wgmma.commit_group."""
        self._committed += 1
        for group, opened in enumerate(self._open):
            self._groups[group].append(opened)
            self._open[group] = []

    def wait(self, left: int, _mask: Mask, _line: int) -> None:
        """wgmma.wait_group: all but the last `left` groups are complete."""
        done = self._committed - left
        self._accumulators = {each: group for each, group in self._accumulators.items() if group > done}
        self._operands = {each: group for each, group in self._operands.items() if group > done}
        for group, committed in enumerate(self._groups):
            while len(committed) > left:
                for read in committed.popleft():
                    self._shared.async_readers[read] -= np.uint16(1)
                    for warp in range(_GROUP_WARPS * group, _GROUP_WARPS * (group + 1)):
                        self._shared.read_at[warp][read] = self._shared.clocks.of[warp, warp]


def _register_operand(registers: list[Array], kind: str, k: int) -> Array:
    """A [64, k] from registers: as mma's A, warp w holds rows 16 w to 16 w + 15."""
    words = np.stack([each.reshape(4, 8, 4) for each in registers], -1)
    elements = element_values(np.ascontiguousarray(words)[..., None].view(np.uint8), kind)
    elements = elements.reshape(4, 8, 4, len(registers) // 2, 2, elements.shape[-1])
    return elements.transpose(0, 4, 1, 3, 2, 5).reshape(64, k)


def matrix_offsets(descriptor: int, shape: tuple[int, int], size: int, transposed: bool) -> Array:
    """Offsets in shared memory of the bytes [rows, k, size] of a matrix.

    PTX ISA, "Matrix Descriptor Format" and "Strides" of wgmma; those of tcgen05 differ in other bits.
    """
    start, leading, stride = (((descriptor >> shift) & 0x3FFF) << 4 for shift in (0, 16, 32))
    mode = _SWIZZLE_MODES[descriptor >> 62]
    if (descriptor >> 49) & 7:
        raise UnsupportedPtxError("a matrix descriptor with a base offset")
    pattern = 16 << mode  # bytes of a row of the swizzle pattern
    r, k = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    if not transposed:
        k_bytes = k * size
        if mode:
            at = start + (r // 8) * stride + (r % 8) * pattern + k_bytes
        else:
            at = start + (r // 8) * stride + (k_bytes // 16) * leading + (r % 8) * 16 + k_bytes % 16
    elif mode:
        each = pattern // size
        at = start + (r // each) * leading + (k // 8) * stride + (k % 8) * pattern + (r % each) * size
    else:
        each = 16 // size
        at = start + (r // each) * stride + (k // 8) * leading + (k % 8) * 16 + (r % each) * size
    return (swizzled(at, mode) - SHARED_BASE)[..., None] + np.arange(size)
