"""The options of a run, and whether they fit in memory."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta, convert

from ..core.arena import memory_bytes
from ..core.cases import Case
from ..core.errors import UsageError
from ..core.parallelism import ONE_GPU, Parallelism
from ..core.record_fields import NonNegative, Positive, Size
from ..core.records import Run
from ..core.sweep import Sweep
from ..core.timed_model import TimedModel
from .device import Device

WholeModelOption = Literal["measure", "none", "transformers"]

MAX_SEQUENCES = 65_536
"""Largest batch: the oracle of decode attention computes one sequence at a time."""

CEILINGS_SHARE = 0.08
"""Share of the time limit that the ceilings take if each of their calls uses its time."""

CEILING_CALLS = 20
"""Calls of the ceilings: readers, a copy, and products of several sizes in each dtype."""

MAX_CEILING_LIMIT_S = 0.25
"""Most seconds of sampling for a call of the ceilings."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of a run.

    Attributes:
        model: the language model whose shapes are timed.
        batches, contexts, prompt, prefill_tokens: as in `Sweep`.
        dtype: dtype of weights, activations and cache; "auto" means the faster of bf16 and fp32 on a CPU,
            and bf16 on a GPU that has it.
        usd_per_hour: price of the device; None means the published price of the GPU, if there is one.
        total_limit_s: seconds of wall-clock time in which the measurement should end; where it does not, rows
            get fewer samples and there are fewer rounds.
        seed: seed of the inputs.
        providers: the user's own functions, each MODULE:FUNCTION.
        counters: whether to read hardware counters after the timing.
        whole_model: whether all layers are measured in one forward, and a peer beside them.
        parallelism: how ranks share the model.
        link_bytes: sizes of the messages that measure the link between ranks; empty on one rank.
    """

    model: TimedModel
    batches: Annotated[tuple[Size, ...], Meta(min_length=1)]
    contexts: Annotated[tuple[Size, ...], Meta(min_length=1)]
    prompt: Size | None
    prefill_tokens: Size
    dtype: str
    usd_per_hour: NonNegative | None
    total_limit_s: Positive
    seed: int = 0
    providers: tuple[str, ...] = ()
    counters: bool = False
    whole_model: WholeModelOption = "none"
    parallelism: Parallelism = ONE_GPU
    link_bytes: tuple[Size, ...] = ()

    @property
    def ceiling_limit_s(self) -> float:
        """Seconds of sampling for each call of the ceilings."""
        return min(MAX_CEILING_LIMIT_S, CEILINGS_SHARE * self.total_limit_s / CEILING_CALLS)

    def sweep(self, dtype: str) -> Sweep:
        """The sweep in a dtype."""
        return Sweep(
            batches=self.batches,
            contexts=self.contexts,
            prompt=self.prompt,
            prefill_tokens=self.prefill_tokens,
            dtype=dtype,
            parallelism=self.parallelism,
        )


def check_memory(settings: Settings, device: Device) -> None:
    """Reject a sweep whose smallest case does not fit in memory.

    Raises:
        UsageError: a case does not fit; names the option, the bytes needed and the bytes free.
    """
    model, free = settings.model, device.free_bytes()
    sweep = settings.sweep("fp32" if settings.dtype == "fp32" else "bf16")

    def needs(*cases: Case) -> int:
        return max(map(memory_bytes, cases))

    one = min(
        case.work().bytes_total for case in sweep.output_token(model, 1, min(sweep.contexts)).attentions
    )
    prompt_option = "--prompt" if settings.prompt else "--context"
    prompts = [sweep.input_token(model, prompt) for prompt in sweep.prompts]
    named = [
        ("--prefill-tokens", sweep.prefill_tokens, needs(*prompts[0].matmuls)),
        *(
            ("--context", size, needs(*sweep.output_token(model, 1, size).attentions))
            for size in sweep.contexts
        ),
        *(
            (prompt_option, size, needs(*token.attentions))
            for size, token in zip(sweep.prompts, prompts, strict=True)
        ),
        # A case of many sequences would hold the length of each.
        *(("--batch", size, size * one) for size in sweep.batches),
    ]
    for option, value, needed in named:
        if needed > free:
            raise UsageError(
                f"{option}: {value} needs {needed / 1e9:.1f} GB of memory for {model.name}, "
                f"{free / 1e9:.1f} GB are free on {device.name}"
            )
    if max(sweep.batches) > MAX_SEQUENCES:
        raise UsageError(f"--batch: {max(sweep.batches)} is over {MAX_SEQUENCES}, the most sequences timed")


def settings_of(run: Run) -> Settings:
    """The settings of a run, read back from it; in place of dtype "auto", the dtype that was chosen.

    Raises:
        ValidationError: a setting is missing or has a wrong type.
    """
    return convert(run.settings, Settings)
