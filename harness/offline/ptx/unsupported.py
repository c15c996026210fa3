"""The error that ends an execution instead of a silent skip."""


class UnsupportedPtxError(Exception):
    """PTX that this executor does not know; the message has the PTX line and the instruction."""
