"""Classes of PTX instructions, and those of `inspect`'s machine code that they correspond to."""

from .parser import Instruction

_BY_OPCODE = {
    **dict.fromkeys(("mma", "wmma"), "tensor_core"),
    **dict.fromkeys(("ex2", "lg2", "rcp", "sqrt", "rsqrt", "sin", "cos", "tanh"), "special"),
    **dict.fromkeys(("mov", "cvta", "createpolicy", "mapa"), "move"),
    "cvt": "conversion",
    **dict.fromkeys(("shfl", "redux", "vote", "activemask", "elect", "match"), "shuffle"),
    "ldmatrix": "load_shared",
    "stmatrix": "store_shared",
    **dict.fromkeys(("atom", "red"), "atomic"),
    **dict.fromkeys(
        ("bar", "barrier", "mbarrier", "fence", "membar", "griddepcontrol", "nanosleep", "setmaxnreg"),
        "barrier",
    ),
    **dict.fromkeys(("bra", "brx", "ret", "exit", "trap", "call"), "control"),
}
_ARITHMETIC = {
    *("add", "sub", "mul", "mad", "fma", "div", "rem", "min", "max", "abs", "neg", "and", "or", "xor", "not"),
    *(
        "shl",
        "shr",
        "shf",
        "bfe",
        "bfi",
        "bfind",
        "prmt",
        "lop3",
        "popc",
        "clz",
        "brev",
        "setp",
        "set",
        "selp",
    ),
    *("copysign", "mul24", "dp4a", "sad", "slct", "testp"),
}
_FLOATS = {"f16", "bf16", "f16x2", "bf16x2", "f32", "f32x2", "f64"}

INSPECT_CLASSES = {
    "tensor_core": "matrix",
    "float": "float",
    "special": "mufu",
    "integer": "integer",
    "conversion": "convert",
    "move": "move",
    "shuffle": "shuffle",
    "load_global": "load_global",
    "copy_async": "load_global",
    "tma": "load_global",
    "load_shared": "load_shared",
    "tensor_memory": "load_shared",
    "store_global": "store",
    "store_shared": "store",
    "atomic": "store",
    "barrier": "barrier",
    "control": "control",
    "other": "other",
}
"""The class in `machine_code.INSTRUCTION_CLASSES` of each class here, in order.

ptxas turns tensor-core, copy, load and store instructions into one machine instruction each; it adds, removes
and fuses the others. It counts stores to tensor memory as stores, here `tensor_memory`.
"""


def class_of(instruction: Instruction) -> str:
    """The class of an instruction: a key of `INSPECT_CLASSES`."""
    opcode = instruction.opcode
    if opcode in _BY_OPCODE:
        return _BY_OPCODE[opcode]
    if opcode in _ARITHMETIC:
        return "float" if _FLOATS & set(instruction.modifiers[-1:]) else "integer"
    classify = _BY_MODIFIERS.get(opcode)
    return "other" if classify is None else classify(instruction)


def _access_class(instruction: Instruction) -> str:
    space = instruction.state_space
    if space in {"param", "const"}:
        return "move"
    if space in {"global", "shared"}:
        return f"{'store' if instruction.opcode == 'st' else 'load'}_{space}"
    return "other"


def _copy_class(instruction: Instruction) -> str:
    if {"commit_group", "wait_group", "wait_all", "mbarrier"} & set(instruction.modifiers):
        return "barrier"
    return "tma" if "bulk" in instruction.modifiers else "copy_async"


def _tensor_class(instruction: Instruction) -> str:
    form = instruction.modifiers[0]
    if form in {"mma_async", "mma"}:
        return "tensor_core"
    return "tensor_memory" if form in {"ld", "st", "cp"} else "barrier"


_BY_MODIFIERS = {
    **dict.fromkeys(("ld", "st"), _access_class),
    "cp": _copy_class,
    **dict.fromkeys(("wgmma", "tcgen05"), _tensor_class),
}
