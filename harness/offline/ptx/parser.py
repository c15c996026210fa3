"""Parses PTX of one kernel into instructions and basic blocks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from .inlining import inlined
from .unsupported import UnsupportedPtxError

_REGISTER_BITS = {
    **{f"{letter}{bits}": bits for letter in "bus" for bits in (8, 16, 32, 64)},
    "pred": 1,
    "f16": 16,
    "f32": 32,
    "f64": 64,
    "f16x2": 32,
    "b128": 128,
}
_CONSTANTS = re.compile(
    r"\.(?:global|const)\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+([\w$]+)(?:\[\d*\])?\s*=\s*\{?([^;{}]+)\}?\s*;"
)
_ENTRY = re.compile(r"\.visible \.entry ([\w$]+)\s*\((.*?)\)\s*((?:\.\w+[^\n{]*\n)*)\s*\{", re.DOTALL)
_ARRAY = re.compile(r"\.(shared|local)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)\[(\d+)\]")
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)[^,]*?([\w$]+)(?:\[(\d+)\])?\s*(?:,|$)")
_LOCATION = re.compile(r"\.(loc|file)\s")
_LABEL = re.compile(r"([$\w]+):(?!:)")
_SPACES = {"global", "shared", "param", "const", "local"}
_TARGET_LIST = ".branchtargets"
_NAME = re.compile(r"[%\w$]+")


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        line: in the PTX, from 1.
        text: as written, in one line.
        source: file and line of the Triton source; empty if PTX has none.
        guard: its predicate register; None without one.
        negated: whether the guard is negated.
        opcode: the name before the first dot.
        modifiers: the names after it.
        operands: as written.
    """

    line: int
    text: str
    source: str
    guard: str | None
    negated: bool
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]

    @property
    def state_space(self) -> str:
        """The state space that a modifier names; "generic" without one."""
        named = (each.partition("::")[0] for each in self.modifiers)
        return next((each for each in named if each in _SPACES), "generic")


@dataclass
class Block:
    """A basic block.

    Attributes:
        index: its number; falling through leads to the next.
        instructions: without the one that ends it.
        kind: how it ends: "fall", "jump", "branch" (under a condition), "switch" (by an index), "barrier" or
            "exit".
        target: of a jump or branch; -1 for the others.
        targets: of a switch.
        end: the instruction that ends it; None if it falls through.
    """

    index: int
    instructions: list[Instruction] = field(default_factory=list)
    kind: str = "fall"
    target: int = -1
    targets: tuple[int, ...] = ()
    end: Instruction | None = None

    @property
    def last(self) -> Instruction:
        """The instruction that ends it."""
        if self.end is None:
            raise ValueError(f"block {self.index} falls through")
        return self.end


@dataclass(frozen=True)
class Barrier:
    """What a block's barrier waits for.

    Attributes:
        number: which of the CTA's 16 it is.
        threads: that take part.
        line: of the PTX.
    """

    number: int
    threads: int
    line: int


@dataclass
class _Scope:
    """Braces within the kernel, as inline assembly has: names of its own."""

    names: dict[str, str]
    number: int


class PtxKernel:
    """The PTX of one kernel.

    Attributes:
        name: of the kernel.
        parameters: bytes of each by its name, in order.
        threads: of a CTA.
        shared_arrays: bytes and alignment of each static array in shared memory, by name.
        local_arrays: the same of arrays of each thread.
        constants: bytes of each initialised variable in global or constant memory, by name.
        registers: index and bits by name.
        register_bits: bits by index.
        blocks: in order.

    Raises:
        UnsupportedPtxError: there is no kernel, or its number of threads is not stated.
    """

    def __init__(self, ptx: str) -> None:
        ptx = inlined(ptx)
        entry = _ENTRY.search(ptx)
        if entry is None:
            raise UnsupportedPtxError("the PTX has no kernel (.visible .entry)")
        self.name: str = entry.group(1)
        self.parameters = {
            name: _REGISTER_BITS[kind] // 8 * int(length or 1)
            for kind, name, length in _PARAMETER.findall(entry.group(2))
        }
        threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", entry.group(3))
        if threads is None:
            raise UnsupportedPtxError(f"{self.name} states no number of threads (.reqntid)")
        self.threads = int(threads.group(1))
        cluster = re.search(r"\.reqnctapercluster\s+([\d, ]+)", entry.group(3))
        if cluster is not None and set(re.findall(r"\d+", cluster.group(1))) != {"1"}:
            raise UnsupportedPtxError(f"{self.name} runs in clusters of CTAs")
        self.shared_arrays: dict[str, tuple[int, int]] = {}
        self.local_arrays: dict[str, tuple[int, int]] = {}
        self.registers: dict[str, tuple[int, int]] = {}
        self.register_bits: list[int] = []
        self._text = ptx
        self._files = {
            int(number): path.rpartition("/")[2]
            for number, path in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', ptx, re.MULTILINE)
        }
        self._scopes: list[_Scope] = []
        self._last_label = ""
        self._target_lists: dict[str, tuple[str, ...]] = {}
        for found in _ARRAY.finditer(ptx[: entry.start()]):
            self._declare_array(found)
        self.constants = {name: _constant(kind, text) for kind, name, text in _CONSTANTS.findall(ptx)}
        items = self._scan(entry.end())
        self._opcodes = {each.opcode for each in items if isinstance(each, Instruction)}
        self.blocks = _basic_blocks(items, self._target_lists)

    @property
    def instructions(self) -> dict[int, Instruction]:
        """Every instruction by its line; of several in a line, the last."""
        return {
            each.line: each
            for block in self.blocks
            for each in (*block.instructions, *([block.end] if block.end else []))
        }

    def barriers(self) -> dict[int, Barrier]:
        """The barrier at the end of each block that has one.

        Raises:
            UnsupportedPtxError: one that does not wait, or whose number or threads are in registers.
        """
        found = {}
        for block in self.blocks:
            if block.kind != "barrier":
                continue
            end = block.last
            if "sync" not in end.modifiers or not all(each.isdigit() for each in end.operands):
                raise UnsupportedPtxError(f"PTX line {end.line}, {end.text!r}: a form of barrier")
            number, threads = (*map(int, end.operands), self.threads)[:2]
            found[block.index] = Barrier(number, threads, end.line)
        return found

    def uses(self, opcode: str) -> bool:
        """Whether any instruction has this opcode."""
        return opcode in self._opcodes

    @cached_property
    def specialized(self) -> bool:
        """Whether its warps run different code: they then switch, or share registers out."""
        return self.uses("brx") or self.uses("setmaxnreg")

    def _scan(self, position: int) -> list[Instruction | str]:
        """Instructions and labels (their names) in order, from the kernel's opening brace on."""
        text, items, source = self._text, list[Instruction | str](), ""
        line = text.count("\n", 0, position) + 1
        depth, scopes = 1, 0
        while depth:
            stop = position + 1
            character = text[position]
            if text.startswith("//", position):
                stop = text.index("\n", position)
            elif text.startswith("/*", position):
                stop = text.index("*/", position) + 2
            elif character == "{":
                depth, scopes = depth + 1, scopes + 1
                self._scopes.append(_Scope(self._labels_within(stop, scopes), scopes))
            elif character == "}":
                depth -= 1
                if self._scopes:
                    self._scopes.pop()
            elif _LOCATION.match(text, position):
                stop = text.index("\n", position)
                source = self._source(text[position:stop]) or source
            elif label := _LABEL.match(text, position):
                self._last_label = self._scoped(label.group(1))
                items.append(self._last_label)
                stop = label.end()
            elif not character.isspace():
                stop = text.index(";", position) + 1
                items += self._statement(text[position : stop - 1], line, source)
            line += text.count("\n", position, stop)
            position = stop
        return items

    def _source(self, location: str) -> str:
        """File and line of a .loc; empty where it names none."""
        found = re.match(r"\.loc\s+(\d+)\s+(\d+)", location)
        if found is None or found.group(2) == "0":
            return ""
        inlined = re.search(r"//\s*(\S+:\d+):\d+", location)
        if inlined:
            return inlined.group(1)
        return f"{self._files.get(int(found.group(1)), found.group(1))}:{found.group(2)}"

    def _statement(self, raw: str, line: int, source: str) -> list[Instruction | str]:
        statement = " ".join(re.sub(r"//[^\n]*", "", raw).split())
        if statement.startswith(".reg"):
            self._declare_registers(statement)
        elif array := _ARRAY.match(statement):
            self._declare_array(array)
        elif parameter := _PARAMETER.fullmatch(statement):
            self._declare_parameter(*parameter.groups())
        elif statement.startswith(_TARGET_LIST):
            self._target_lists[self._last_label] = tuple(_NAME.findall(statement.removeprefix(_TARGET_LIST)))
        elif statement and not statement.startswith("."):  # .pragma and the like change no result
            return [self._instruction(line, statement, source)]
        return []

    def _declare_registers(self, statement: str) -> None:
        kind, names = re.findall(r"\.reg\s+\.(\w+)\s+(.*)", statement)[0]
        for name in re.split(r"\s*,\s*", names):
            ranged = re.match(r"([%\w$]+?)<(\d+)>", name)
            each = [f"{ranged.group(1)}{i}" for i in range(int(ranged.group(2)))] if ranged else [name]
            for one in each:
                self._declare_register(one, _REGISTER_BITS[kind])

    def _declare_register(self, name: str, bits: int) -> None:
        if self._scopes:
            scope = self._scopes[-1]
            name = scope.names.setdefault(name, f"{name}@{scope.number}")
        if bits > 64:
            raise UnsupportedPtxError(f"register {name} of {bits} bits")
        if name not in self.registers:
            self.registers[name] = (len(self.register_bits), bits)
            self.register_bits.append(bits)

    def _declare_array(self, found: re.Match[str]) -> None:
        space, alignment, kind, name, length = found.groups()
        arrays = self.shared_arrays if space == "shared" else self.local_arrays
        element_bytes = _REGISTER_BITS[kind] // 8
        arrays[name] = (int(length) * element_bytes, int(alignment or element_bytes))

    def _declare_parameter(self, kind: str, name: str, length: str | None) -> None:
        """A parameter of a call: local memory, which several calls may share."""
        size = _REGISTER_BITS[kind] // 8 * int(length or 1)
        self.local_arrays[name] = (max(size, self.local_arrays.get(name, (0, 0))[0]), 16)

    def _labels_within(self, position: int, scope: int) -> dict[str, str]:
        """Labels within the braces that start before `position`, under names of their own."""
        depth, stop = 1, position
        while depth:
            depth += {"{": 1, "}": -1}.get(self._text[stop], 0)
            stop += 1
        labels = re.findall(r"(?:^|[;{}])\s*([$\w]+):(?!:)", self._text[position:stop], re.MULTILINE)
        return {name: f"{name}@{scope}" for name in labels}

    def _scoped(self, name: str) -> str:
        for scope in reversed(self._scopes):
            if name in scope.names:
                return scope.names[name]
        return name

    def _instruction(self, line: int, text: str, source: str) -> Instruction:
        guard, rest = "", text
        if guarded := re.match(r"@(!?[%\w$]+)\s+(.*)", text):
            guard, rest = guarded.groups()
        name, _, tail = rest.partition(" ")
        operands = split_operands(tail)
        if self._scopes:
            operands = [_NAME.sub(lambda found: self._scoped(found.group(0)), each) for each in operands]
        opcode, *modifiers = name.split(".")
        return Instruction(
            line=line,
            text=text,
            source=source,
            guard=self._scoped(guard.lstrip("!")) if guard else None,
            negated=guard.startswith("!"),
            opcode=opcode,
            modifiers=tuple(modifiers),
            operands=tuple(operands),
        )


def _constant(kind: str, text: str) -> bytes:
    """The bytes of a variable's initial values."""
    size = _REGISTER_BITS[kind] // 8
    values = (each.strip().lower() for each in text.split(","))
    bits = (int(f"0x{each[2:]}" if each[:2] in {"0f", "0d"} else each, 0) for each in values)
    return b"".join((each % 2 ** (8 * size)).to_bytes(size, "little") for each in bits)


def split_operands(text: str) -> list[str]:
    """Operands between commas, brackets kept whole."""
    operands, depth, current = [], 0, ""
    for character in text:
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            operands.append(current.strip())
            current = ""
        else:
            current += character
    if current.strip():
        operands.append(current.strip())
    return operands


def _end_kind(instruction: Instruction) -> str:
    """How a block ends that this instruction ends; empty if it ends none."""
    if instruction.opcode == "bra":
        return "branch" if instruction.guard else "jump"
    if instruction.opcode == "brx" and not instruction.guard:
        return "switch"
    if instruction.opcode in {"ret", "exit"}:
        return "exit"
    if instruction.opcode in {"bar", "barrier"} and not {"warp", "cluster"} & set(instruction.modifiers):
        return "barrier"
    return ""


def _basic_blocks(items: list[Instruction | str], target_lists: Mapping[str, tuple[str, ...]]) -> list[Block]:
    blocks, labels = [Block(0)], dict[str, int]()
    targets = {each.operands[0] for each in items if isinstance(each, Instruction) and each.opcode == "bra"}
    targets.update(*target_lists.values())
    for item in items:
        block = blocks[-1]
        if isinstance(item, str):
            if item not in targets:
                continue
            if block.instructions:
                block = Block(len(blocks))
                blocks.append(block)
            labels[item] = block.index
        elif kind := _end_kind(item):
            block.end, block.kind = item, kind
            blocks.append(Block(len(blocks)))
        else:
            block.instructions.append(item)
    for block in blocks:
        if block.kind in {"jump", "branch"}:
            block.target = labels[block.last.operands[0]]
        elif block.kind == "switch":
            block.targets = tuple(labels[each] for each in target_lists[block.last.operands[1]])
    return blocks
