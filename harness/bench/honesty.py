"""Whether a provider did the work that was timed, in the call that was timed (docs/method.md, "The gate")."""

import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.cases import Case
from ..core.errors import ProviderError
from ..core.gate import Gate
from ..core.inputs import (
    DecodeAttentionInputs,
    DecoderLayerInputs,
    Inputs,
    MatmulInputs,
    PrefillAttentionInputs,
    poison,
)
from ..core.outputs import output_fault
from .device import Device
from .input_watch import input_tensors, own_views
from .providers import Provider, gate_of

WAIT_S, WAITS = 0.02, 5
"""Seconds in which work that a call left behind shows, and how often so long is waited for its result."""

LEFT_WORK = "left work behind: its output was not complete when its call returned"
"""The reason of a row whose output became right afterwards."""

MIN_LEFT_S, LEFT_SHARE = 50e-6, 0.5
"""A GPU that goes on for longer than this, and for this share of a call, after the call's end computes
something that was not timed."""

LEFT_TRIES = 3
"""Each of so many calls must leave work behind: the host may be late for other reasons."""

LONGER, LONGER_S = 2.0, 5e-6
"""A call on new numbers that takes over so many times as long as one on numbers that it has seen, and so many
seconds more, does work that was not done in the calls that were timed."""

LONGER_TRIES = 64
"""Each of so many calls on new numbers must take longer: beside busy processes, as where ranks share
cores, three of four calls may be slow, and an honest provider then fails once in 10^8 times."""

BUSY_THREAD_S = 1e-3
"""CPU seconds of a thread within `WAIT_S` from which it computes; an idle one wakes up for microseconds."""


class BoundCall:
    """A provider bound to one copy of the inputs; keeps its last output."""

    def __init__(self, provider: Provider, inputs: Inputs) -> None:
        self.inputs, own = inputs, own_views(inputs)
        self._provider, self._own = provider, own
        self._call: Callable[[], Any] = functools.partial(provider.run, own)
        self.output: Any = None
        self.called = False

    def bind(self) -> None:
        """Let the provider plan; planning may run the kernel, so the outputs are poisoned again."""
        if self._provider.bind is not None:
            self._call = self._provider.bind(self._own)
            poison(self.inputs)

    def __call__(self) -> None:  # noqa: D102  (the class says it)
        self.output = self._call()
        self.called = True

    def checked_output(self) -> Tensor:
        """The last output.

        Raises:
            ProviderError: it is not a plain tensor of memory that is no input's.
        """
        fault = output_fault(self.output, output_like(self.inputs)) or _in_input(self.output, self.inputs)
        if fault is not None:
            raise ProviderError(fault)
        output: Tensor = self.output
        return output

    def poison(self) -> None:
        """Fill the last output, and `out`, with NaN; raises as `checked_output` does."""
        if self.called:
            output = self.checked_output()
            with torch.inference_mode():  # which an output may come from; others are filled all the same
                output.fill_(math.nan)
        poison(self.inputs)


def output_like(inputs: Inputs) -> Tensor:
    """A tensor of the shape, dtype and device of the output."""
    match inputs:
        case DecoderLayerInputs():
            return inputs.hidden
        case _:
            return inputs.out


def _in_input(output: Tensor, inputs: Inputs) -> str | None:
    """Why an output lies in memory of the inputs, in words; None if it does not."""
    start, end = _span(output)
    out = getattr(inputs, "out", None)
    if start == end or (out is not None and _span(out)[0] <= start and end <= _span(out)[1]):
        return None
    storage = output.untyped_storage().data_ptr()
    shared = [t for t in input_tensors(inputs) if t[1].untyped_storage().data_ptr() == storage]
    for name, tensor in shared:
        if start < _span(tensor)[1] and _span(tensor)[0] < end:
            return f"returned memory of its {name}"
    return "returned memory of other inputs" if shared else None


def _span(tensor: Tensor) -> tuple[int, int]:
    """Addresses of the first byte of a strided tensor and of the byte after its last."""
    start = tensor.data_ptr()
    if tensor.numel() == 0:
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """Other numbers for some inputs of a case, and the gate on them.

    Activations change, and so do the keys and values of one head. Weights do not: an engine, too, packs a
    weight once.
    """

    gate: Gate

    @contextlib.contextmanager
    def written(self, inputs: Inputs) -> Iterator[Callable[[], None]]:
        """Gives a function that writes the numbers in place; what was there is put back at the end."""
        with _other_numbers(inputs) as write:
            yield write


def unseen_of(case: Case, inputs: Inputs) -> Unseen:
    """Other numbers for a case, and their oracle in float64: of a prompt or a layer for the first sequence.

    Args:
        case: the case.
        inputs: a copy of its inputs; the same afterwards.
    """
    with _other_numbers(inputs) as write:
        write()
        part, of_output = _one_sequence(inputs)
        gate = gate_of(case, part)
    select = gate.select
    return Unseen(gate=replace(gate, select=lambda out: select(of_output(out))))


@contextlib.contextmanager
def _other_numbers(inputs: Inputs) -> Iterator[Callable[[], None]]:
    changed = [(view, view.clone()) for view in _changeable(inputs)]
    # Shifts differ, or q and k would have the same scores as before.
    new = [old.roll(shift, -1).neg() for shift, (_, old) in enumerate(changed, start=1)]

    def write() -> None:
        for (view, _), numbers in zip(changed, new, strict=True):
            _overwrite(view, numbers)

    try:
        yield write
    finally:
        for view, old in changed:
            _overwrite(view, old)


def _overwrite(view: Tensor, numbers: Tensor) -> None:
    """Write numbers as a kernel does: PyTorch's version counter, a key of kept results, stays as it is."""
    view.data.copy_(numbers)


def _changeable(inputs: Inputs) -> list[Tensor]:
    """Views of the activations, and of the keys and values that the last head of one sequence reads."""
    match inputs:
        case MatmulInputs():
            return [inputs.x]
        case DecodeAttentionInputs():
            # The last head of the first or the last sequence is always judged. NaN in dead cache stays NaN.
            longer = max((0, -1), key=lambda sequence: inputs.contexts[sequence])
            return [inputs.q, inputs.k_cache[longer, ..., -1, :], inputs.v_cache[longer, ..., -1, :]]
        case PrefillAttentionInputs():
            return [inputs.q, inputs.k[0, -1], inputs.v[0, -1]]
        case DecoderLayerInputs():
            old = inputs.case.tokens - inputs.case.query_tokens
            return [inputs.hidden, inputs.k_cache[0, -1, :old], inputs.v_cache[0, -1, :old]]


def _one_sequence(inputs: Inputs) -> tuple[Inputs, Callable[[Tensor], Tensor]]:
    """The inputs that are judged on other numbers, and a function that takes their output."""
    match inputs:
        case MatmulInputs() | DecodeAttentionInputs():
            return inputs, lambda out: out
        case PrefillAttentionInputs():
            names: tuple[str, ...] = ("q", "k", "v", "out")
        case DecoderLayerInputs():
            names = ("hidden", "k_cache", "v_cache")
    part: Inputs = replace(inputs, **{name: getattr(inputs, name)[:1] for name in names})
    return part, lambda out: out[:1]


def check_on_unseen(call: BoundCall, unseen: Unseen, gate: Gate, device: Device) -> float:
    """Call a provider on other numbers that were written in place.

    Its output is copied at once when the call returns, so that work that goes on elsewhere is not in it.

    Args:
        call: the provider, bound to the copy of the inputs of which the oracles are.
        unseen: the other numbers.
        gate: the gate on the inputs before.
        device: runs the call.

    Returns:
        Seconds until the call returned.

    Raises:
        ProviderError: the output is not the result; says what is known of the cause.
    """
    returned_s = 0.0
    with unseen.written(call.inputs) as write:

        def rewrite() -> None:
            write()
            call.poison()

        def output() -> Tensor:
            nonlocal returned_s
            start_s = time.perf_counter()
            call()
            returned_s = time.perf_counter() - start_s
            return call.checked_output()

        at_once = device.copy_at_once(rewrite, output)
        verdict = unseen.gate.judge(at_once)
        if verdict.passed:
            return returned_s
        if becomes_right(call, unseen.gate):
            raise ProviderError(LEFT_WORK)
    if gate.judge(at_once).passed:
        raise ProviderError("returned an earlier result after its inputs had changed in place")
    raise ProviderError(f"inputs that had changed in place gave a {verdict.reason}")


def becomes_right(call: BoundCall, gate: Gate) -> bool:
    """Whether a provider's wrong output becomes right while nobody calls it."""
    for _ in range(WAITS):
        time.sleep(WAIT_S)
        if gate.judge(call.checked_output()).passed:
            return True
    return False


def check_time_on_new(call: BoundCall, device: Device, *, call_s: float) -> None:
    """Make sure that calls are not short because they know their numbers, by their sum for example.

    Args:
        call: a provider.
        device: runs and times it.
        call_s: seconds of a call as timed.

    Raises:
        ProviderError: calls on new numbers take longer.
    """
    activations = _changeable(call.inputs)[0]
    old = activations.clone()

    def time_s(numbers: Tensor) -> float:
        _overwrite(activations, numbers)
        return device.time_each([call])[0]

    def new(number: int) -> Tensor:
        return old.roll(number, -1) * (1 + number / 8)  # neither their sum nor their norm is known

    try:
        new_s = time_s(new(1))
        if new_s <= LONGER * call_s:
            return
        seen_s = math.inf
        for number in range(2, LONGER_TRIES + 2):
            seen_s = min(seen_s, time_s(old))
            new_s = min(new_s, time_s(new(number)))
            if new_s <= LONGER * seen_s + LONGER_S:
                return
    finally:
        _overwrite(activations, old)
    raise ProviderError(
        f"keeps results: a call on new numbers took {new_s / seen_s:.3g} times as long as on known ones"
    )


def check_idle_after(call: BoundCall, device: Device, *, call_s: float) -> None:
    """Make sure that the device computes nothing more after the end of a call.

    Args:
        call: a provider.
        device: runs it.
        call_s: seconds of a call.

    Raises:
        ProviderError: it does; says for how long.
    """
    limit_s = max(MIN_LEFT_S, LEFT_SHARE * call_s)
    left_s = math.inf
    for _ in range(LEFT_TRIES):
        left_s = min(left_s, device.busy_after_s(call))
        if left_s <= limit_s:
            return
    raise ProviderError(f"left work behind: the device computed {left_s * 1e6:.0f} us longer than the call")


def busy_threads(before: Sequence[threading.Thread]) -> str | None:
    """Threads that began since and still compute, in words; None if there are none."""
    started = [thread for thread in threading.enumerate() if thread not in before]
    if not started:
        return None
    used_s = {thread: _cpu_s(thread) for thread in started}
    time.sleep(WAIT_S)
    busy = [thread.name for thread in started if _cpu_s(thread) - used_s[thread] > BUSY_THREAD_S]
    return f"left a thread running: {busy[0]}" if busy else None


def _cpu_s(thread: threading.Thread) -> float:
    """CPU seconds of a thread; 0 where the system does not say, or the thread has ended."""
    try:
        text = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return int(text.split()[0]) * 1e-9
