"""Finds a kernel's hot loop, and the instructions that one of its iterations issues.

A basic block is a run of instructions that branches enter only at its first and leave only at its last. Block
A dominates B if every path from the entry to B passes through A. An edge from B to a block A that dominates
it is a back edge. Its natural loop is A and the blocks from which B can be reached without passing A (Aho,
Sethi, Ullman, "Compilers", section 10.4).

One iteration of a warp counts:
- **the usual path**: the path from the loop's header to its back edge that issues the fewest instructions. It
  holds what every iteration needs and skips what can be jumped over: slow paths, epilogues of a persistent
  kernel, error traps;
- **elected work**: blocks off that path with MMA instructions or asynchronous copies. One warp issues them
  for the whole CTA, so the count is that of the busiest warp;
- **no spin waits**: inner loops that only wait, of at most `SPIN_INSTRUCTIONS` and without a memory or MMA
  instruction. Their number of iterations depends on what they wait for.

Other inner loops count one iteration. A predicated instruction counts: it takes its issue slot either way.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .machine_code import INSTRUCTION_CLASSES, Instruction, MachineCode, multiply_adds

SPIN_INSTRUCTIONS = 8
_WORK = {"matrix", "load_global", "load_shared", "store", "spill"}
_ENDS = {"EXIT", "RET", "BRX", "BRXU", "JMX", "JMP", "KILL"}
_JUMPS = {"BRA", "CALL", "BRX", "BRXU", "JMX", "JMP"}
_BRANCHES = _JUMPS | _ENDS


@dataclass(frozen=True)
class Block:
    """A basic block.

    Attributes:
        start: index of its first instruction.
        end: index after its last.
        successors: the blocks that may run next.
    """

    start: int
    end: int
    successors: tuple[int, ...]


@dataclass(frozen=True)
class Loop:
    """A natural loop; those that share a header are one.

    Attributes:
        header: the block that it is entered at.
        latches: the blocks whose branch leads back to the header.
        body: all its blocks.
    """

    header: int
    latches: frozenset[int]
    body: frozenset[int]


@dataclass(frozen=True)
class HotLoop:
    """What one iteration issues, per warp.

    Attributes:
        indices: indices of its instructions in the kernel's code, in execution order.
        instructions: the instructions at these indices.
        multiply_adds: multiply-adds of its MMA instructions, per warp; None where a shape cannot be read. A
            `UTC*MMA` counts in full: one warp issues it for the CTA.
        elected: how many of the instructions are elected work, which the other warps skip.
    """

    indices: tuple[int, ...]
    instructions: tuple[Instruction, ...]
    multiply_adds: float | None
    elected: int = 0

    @property
    def count(self) -> int:
        """Issue slots per warp."""
        return len(self.instructions)

    def issue_slots(self, warps: int) -> int:
        """Issue slots of so many warps together: elected work counts once."""
        return (self.count - self.elected) * warps + self.elected

    def by_class(self) -> dict[str, int]:
        """Number of instructions of each class that occurs, in the order of `INSTRUCTION_CLASSES`."""
        counts = Counter(instruction.kind for instruction in self.instructions)
        return {kind: counts[kind] for kind in INSTRUCTION_CLASSES if counts[kind]}

    @property
    def mma_names(self) -> tuple[str, ...]:
        """Names of its MMA instructions, the most frequent first."""
        names = Counter(each.name for each in self.instructions if each.is_mma)
        return tuple(name for name, _ in names.most_common())

    @property
    def drains(self) -> tuple[int, ...]:
        """Issue slots of a warp from each wait for all its MMAs in flight to the next MMA: one of each wait.

        A warp-group MMA runs while its warps issue other instructions. Those that name `gsb0` end a group;
        `WARPGROUP.DEPBAR.LE gsb0, n` waits until at most the n newest groups are in flight.
        """
        found, groups, uncommitted, drained_at = [], 0, False, None
        # The second time around the state at the start is that of the steady loop.
        for at, each in enumerate(self.instructions * 2):
            if each.is_group_mma:
                if drained_at is not None and at >= self.count:
                    found.append(at - drained_at - 1)
                committed = "gsb0" in each.operands
                groups, uncommitted, drained_at = groups + committed, not committed, None
            elif (left := each.mma_groups_left) is not None:
                in_flight = groups or uncommitted
                groups = min(groups, left)
                if in_flight and not (groups or uncommitted):
                    drained_at = at
        return tuple(found)

    @property
    def global_loads(self) -> tuple[Instruction, ...]:
        """Its loads from global memory."""
        return tuple(each for each in self.instructions if each.is_global_load)


def basic_blocks(code: MachineCode) -> tuple[Block, ...]:
    """The basic blocks of a kernel, the entry first.

    A call falls through to the instruction after it; a local label that it names may also run next (compilers
    leave loops that way). A computed branch has the successors that the disassembler lists.
    """
    instructions = code.instructions
    starts = {0} | {at for at in code.labels.values() if at < len(instructions)}
    starts |= {at + 1 for at, each in enumerate(instructions[:-1]) if each.name in _BRANCHES}
    ordered = sorted(starts) if instructions else []
    number = {start: block for block, start in enumerate(ordered)}
    blocks = []
    for start, end in zip(ordered, [*ordered[1:], len(instructions)], strict=True):
        last = instructions[end - 1]
        targets = last.targets if last.name in _JUMPS else ()
        following = [number[code.labels[each]] for each in targets if code.labels.get(each) in number]
        stays = last.name not in _ENDS and (last.name != "BRA" or _conditional(last))
        if end in number and (stays or (last.name in _ENDS and last.guard not in {"", "PT", "UPT"})):
            following.append(number[end])
        blocks.append(Block(start, end, tuple(dict.fromkeys(following))))
    return tuple(blocks)


def dominators(blocks: Sequence[Block]) -> dict[int, frozenset[int]]:
    """The dominators of each block that the entry reaches, itself included."""
    order = _reverse_postorder(blocks)
    before = _predecessors(blocks, order)
    dominating = {block: frozenset(order) for block in order}
    if order:
        dominating[order[0]] = frozenset({order[0]})
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            common = frozenset.intersection(*(dominating[each] for each in before[block])) | {block}
            if common != dominating[block]:
                dominating[block], changed = common, True
    return dominating


def natural_loops(blocks: Sequence[Block]) -> tuple[Loop, ...]:
    """The natural loops, by header. An unreachable endless `BRA` to itself is not a loop."""
    dominating = dominators(blocks)
    before = _predecessors(blocks, dominating)
    latches: dict[int, set[int]] = {}
    for block in dominating:
        for successor in blocks[block].successors:
            if successor in dominating[block]:
                latches.setdefault(successor, set()).add(block)
    loops = []
    for header, ends in sorted(latches.items()):
        body, pending = {header}, list(ends)
        while pending:
            block = pending.pop()
            if block not in body:
                body.add(block)
                pending.extend(before[block])
        loops.append(Loop(header, frozenset(ends), frozenset(body)))
    return tuple(loops)


def find_hot_loops(code: MachineCode) -> tuple[HotLoop, ...]:
    """Finds a kernel's hot loop, and the loop that loads for it.

    Of the innermost loops with work, the hot one has the most multiply-adds, then the most bytes loaded
    asynchronously, then the most bytes loaded. Of loops with the same of each and MMA instructions, it is the
    shortest: the others are its masked copies, for tiles at an edge. Otherwise it is the longest. With warp
    specialisation the MMA instructions and their loads are in different loops.

    Returns:
        The hot loop; if it loads nothing from global memory, then also the loop that loads most. Empty for a
        kernel without loops.
    """
    ranked = working_loops(code)
    if not ranked:
        return ()
    hot = ranked[0]
    if hot.global_loads:
        return (hot,)
    loading = sorted((loop for loop in ranked[1:] if loop.global_loads), key=_loaded, reverse=True)
    return (hot, *loading[:1])


def working_loops(code: MachineCode) -> tuple[HotLoop, ...]:
    """Innermost loops with work, the hot one first; with warp specialisation those of all warps."""
    blocks = basic_blocks(code)
    loops = natural_loops(blocks)
    spins = [loop for loop in loops if _is_spin_wait(loop, blocks, code.instructions)]
    others = [loop for loop in loops if loop not in spins]
    working = [loop for loop in others if _does_work(loop.body, blocks, code.instructions)] or others
    innermost = [loop for loop in working if not any(other.body < loop.body for other in working)]
    found = [_iteration(code, blocks, loop, spins, loops) for loop in innermost]
    return tuple(sorted(found, key=_rank, reverse=True))


def _rank(loop: HotLoop) -> tuple[float, int, int, int, int]:
    """Sort key of `find_hot_loops`; of equal loops the first in memory wins."""
    mmas = sum(each.is_mma for each in loop.instructions)
    pipelined = sum(_loaded_by(each) for each in loop.global_loads if each.is_asynchronous)
    length = -loop.count if mmas else loop.count
    return loop.multiply_adds or float(mmas), pipelined, _loaded(loop), length, -loop.indices[0]


def _loaded(loop: HotLoop) -> int:
    return sum(_loaded_by(each) for each in loop.global_loads)


def _loaded_by(load: Instruction) -> int:
    # A TMA load moves a tile: more than any load by lanes.
    return (1 << 20) if load.is_tma else load.lane_bytes


def _iteration(
    code: MachineCode, blocks: Sequence[Block], loop: Loop, spins: Iterable[Loop], loops: Sequence[Loop]
) -> HotLoop:
    """The instructions of one iteration of a loop, as the module's head defines them."""
    waiting = {block for spin in spins if spin.body < loop.body for block in spin.body}
    inner = [other for other in loops if other.body < loop.body]
    path = _usual_path(blocks, loop, waiting, inner)
    elected = {
        block
        for block in loop.body - waiting
        if any(
            code.instructions[at].is_mma or code.instructions[at].is_asynchronous
            for at in range(blocks[block].start, blocks[block].end)
        )
    }
    counted = sorted((set(path) | elected) - waiting, key=lambda block: _position(block, path, blocks))
    indices = tuple(at for block in counted for at in range(blocks[block].start, blocks[block].end))
    mmas = [multiply_adds(code, at) for at in indices if code.instructions[at].is_mma]
    known = [each for each in mmas if each is not None]
    return HotLoop(
        indices,
        tuple(code.instructions[at] for at in indices),
        sum(known) if len(known) == len(mmas) else None,
        sum(blocks[block].end - blocks[block].start for block in elected - set(path)),
    )


def _position(block: int, path: Sequence[int], blocks: Sequence[Block]) -> tuple[int, int]:
    """Sort key by execution order: path blocks in path order, others before the next path block in memory."""
    if block in path:
        return path.index(block), 1
    later = [at for at, each in enumerate(path) if blocks[each].start > blocks[block].start]
    return (min(later) if later else len(path)), 0


def _usual_path(
    blocks: Sequence[Block], loop: Loop, waiting: set[int], inner: Sequence[Loop]
) -> tuple[int, ...]:
    """The path with the fewest instructions to the furthest of the loop's back edges."""
    backward = {(latch, each.header) for each in (loop, *inner) for latch in each.latches}
    order = [block for block in _reverse_postorder(blocks, loop.header) if block in loop.body]
    best: dict[int, tuple[int, tuple[int, ...]]] = {
        loop.header: (_issue_slots(loop.header, blocks, waiting), (loop.header,))
    }
    for block in order:
        if block not in best:
            continue
        cost, path = best[block]
        for successor in blocks[block].successors:
            if successor not in loop.body or (block, successor) in backward:
                continue
            longer = cost + _issue_slots(successor, blocks, waiting)
            if successor not in best or longer < best[successor][0]:
                best[successor] = (longer, (*path, successor))
    return max((best[latch] for latch in loop.latches if latch in best), key=lambda each: each[0])[1]


def _issue_slots(block: int, blocks: Sequence[Block], waiting: set[int]) -> int:
    return 0 if block in waiting else blocks[block].end - blocks[block].start


def _is_spin_wait(loop: Loop, blocks: Sequence[Block], instructions: Sequence[Instruction]) -> bool:
    size = sum(blocks[block].end - blocks[block].start for block in loop.body)
    if size > SPIN_INSTRUCTIONS or _does_work(loop.body, blocks, instructions):
        return False
    kinds = {
        instructions[at].kind for block in loop.body for at in range(blocks[block].start, blocks[block].end)
    }
    return "barrier" in kinds


def _does_work(body: Iterable[int], blocks: Sequence[Block], instructions: Sequence[Instruction]) -> bool:
    return any(
        instructions[at].kind in _WORK
        for block in body
        for at in range(blocks[block].start, blocks[block].end)
    )


def _conditional(branch: Instruction) -> bool:
    """Whether a `BRA` may fall through: a guard, or a predicate or a divergence test among its operands."""
    tested = branch.operands.partition("`")[0].strip(" ,")
    return branch.guard not in {"", "PT", "UPT"} or bool(tested)


def _predecessors(blocks: Sequence[Block], reached: Iterable[int]) -> Mapping[int, list[int]]:
    before: dict[int, list[int]] = {block: [] for block in reached}
    for block in before:
        for successor in blocks[block].successors:
            before[successor].append(block)
    return before


def _reverse_postorder(blocks: Sequence[Block], entry: int = 0) -> list[int]:
    if not blocks:
        return []
    order: list[int] = []
    seen = {entry}
    pending = [(entry, iter(blocks[entry].successors))]
    while pending:
        block, successors = pending[-1]
        following = next((each for each in successors if each not in seen), None)
        if following is None:
            order.append(block)
            pending.pop()
        else:
            seen.add(following)
            pending.append((following, iter(blocks[following].successors)))
    return order[::-1]
