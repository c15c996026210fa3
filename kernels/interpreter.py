"""Whether Triton kernels run compiled, or on the CPU in Triton's interpreter.

Triton reads `TRITON_INTERPRET` once, when it is imported; that decides for every kernel of the process.
Importing this module does not import Triton.
"""

from __future__ import annotations

import os
import sys


def interpreting() -> bool:
    """Whether Triton kernels run interpreted: as Triton was imported, or would be imported now."""
    if "triton.language" not in sys.modules:
        return os.environ.get("TRITON_INTERPRET", "0").lower() in {"1", "true", "yes", "on", "y"}
    from triton import JITFunction  # noqa: PLC0415  (importing this module must not import Triton)
    from triton.language import standard  # noqa: PLC0415  (the same)

    # How Triton was imported shows in the type of its own library functions.
    return not isinstance(standard.sigmoid, JITFunction)


def use_interpreter() -> None:
    """Run Triton kernels in the patched interpreter, on CPU tensors; call it before importing triton.

    Sets `TRITON_INTERPRET=1`, which child processes inherit.

    Raises:
        RuntimeError: triton was already imported and compiles its kernels.
        ImportError: triton is not installed.
    """
    if "triton.language" in sys.modules and not interpreting():
        raise RuntimeError(
            "triton was imported before use_interpreter() and compiles its kernels; call "
            "use_interpreter() first, or set TRITON_INTERPRET=1 before Python starts"
        )
    os.environ["TRITON_INTERPRET"] = "1"
    patch_interpreter()


def patch_interpreter() -> None:
    """Patch Triton's interpreter (see `interpreter_patches`), once; does nothing if kernels are compiled.

    Raises:
        RuntimeError: `TRITON_INTERPRET` changed after triton was imported: new kernels and Triton's own
            functions that they call would run in different ways.
    """
    from triton import knobs  # noqa: PLC0415  (importing this module must not import Triton)

    if bool(knobs.runtime.interpret) != interpreting():
        now = "set" if knobs.runtime.interpret else "unset"
        raise RuntimeError(
            f"TRITON_INTERPRET was {now} after triton was imported; set it before Python starts"
        )
    if interpreting():
        from . import interpreter_patches  # noqa: PLC0415  (it needs the interpreter)

        interpreter_patches.apply()
