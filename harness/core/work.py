"""The minimum operations and bytes of a case, as named terms."""

from collections.abc import Mapping
from dataclasses import dataclass

ELEMENT_BYTES: Mapping[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True, kw_only=True)
class Work:
    """The minimum work of a case.

    Attributes:
        operation_terms: operations by what they compute; a multiply-add counts as 2.
        read_terms: bytes read by tensor, each input element once.
        written_terms: bytes written by tensor, each output element once.
    """

    operation_terms: Mapping[str, int]
    read_terms: Mapping[str, int]
    written_terms: Mapping[str, int]

    @property
    def operations(self) -> int:
        """All operations."""
        return sum(self.operation_terms.values())

    @property
    def bytes_read(self) -> int:
        """All bytes read."""
        return sum(self.read_terms.values())

    @property
    def bytes_written(self) -> int:
        """All bytes written."""
        return sum(self.written_terms.values())

    @property
    def bytes_total(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written

    @property
    def operations_per_byte(self) -> float:
        """Arithmetic intensity: operations over bytes read and written."""
        return self.operations / self.bytes_total
