"""The table of opcodes that this executor knows, from the handlers of each group."""

from . import (
    translate_arithmetic,
    translate_bits,
    translate_conversions,
    translate_copies,
    translate_matrix,
    translate_memory,
    translate_tensor_memory,
)
from .translator import Opcodes

OPCODES: Opcodes = {
    **translate_arithmetic.HANDLERS,
    **translate_bits.HANDLERS,
    **translate_conversions.HANDLERS,
    **translate_memory.HANDLERS,
    **translate_copies.HANDLERS,
    **translate_matrix.HANDLERS,
    **translate_tensor_memory.HANDLERS,
}
