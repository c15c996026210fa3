"""The measured whole model in sentences: its rates, and where they differ from the composed ones, why."""

from collections.abc import Iterator

from ..core.errors import printable
from ..core.records import Run
from ..core.units import number, seconds
from ..core.whole_model import WholeForward, WholeModel

PARTS = {
    "projections": "the projections",
    "attention": "attention",
    "rest": "the rest of the layers (norms, rotary embedding, activations, residuals)",
    "lm_head": "the LM head",
}
LIMITS = {"memory": "memory holds no more", "time": "the time limit allows no more"}


def whole_sentences(run: Run) -> Iterator[str]:
    """A sentence or two for each forward that was measured."""
    if run.whole_model is not None:
        for forward in run.whole_model.forwards:
            if forward.status == "ok":
                yield " ".join(_of_ok(forward, run.whole_model))


def whole_missing(run: Run) -> Iterator[str]:
    """A sentence for each forward that was not measured."""
    if run.whole_model is None:
        return
    for forward in run.whole_model.forwards:
        if forward.status == "skipped":
            yield f"{forward_name(forward)}, was not measured: {forward.reason}."
    if run.whole_model.reason is not None:
        yield f"The whole model was not measured in full: {printable(run.whole_model.reason)}."


def whole_failures(run: Run) -> Iterator[str]:
    """A line for each forward with wrong logits."""
    if run.whole_model is not None:
        for forward in run.whole_model.forwards:
            if forward.status == "failed":
                yield f"FAILED: {forward_name(forward)}: {forward.reason}"


def forward_name(forward: WholeForward) -> str:
    """A forward in words."""
    by = "" if forward.by == "decodetax" else f" in {forward.by}"
    return f"The whole model{by}, {_place(forward)}"


def layers_text(forward: WholeForward, whole: WholeModel) -> str:
    """The number of layers of a forward, and of how many if there are more."""
    return str(forward.layers) if forward.layers == whole.layers else f"{forward.layers} of {whole.layers}"


def _place(forward: WholeForward) -> str:
    if forward.phase == "prefill":
        return f"prefill of {forward.sequences} x {forward.tokens} tokens"
    return f"decode at batch {forward.sequences} and context {forward.tokens}"


def _rate(forward: WholeForward) -> str:
    rate = number(forward.tokens_per_s, 3)
    if forward.phase == "prefill":
        return f"{rate} input tokens/s"
    return f"{rate} output tokens/s at batch {forward.sequences}"


def _of_ok(forward: WholeForward, whole: WholeModel) -> Iterator[str]:
    if forward.by != "decodetax":
        layers = f"{layers_text(forward, whole)} layers and " if forward.layers != whole.layers else ""
        yield f"With {layers}the same weights, {forward.by} has {_rate(forward)}."
        return
    what = "The whole model"
    if forward.layers != whole.layers:
        limit = LIMITS.get(forward.limited_by or "", "the rest was left out")
        what = f"Of the whole model {layers_text(forward, whole)} layers ({limit})"
    ratio = forward.composed_over_measured
    more = "more" if ratio > 1 else "less"
    difference = f"{abs(ratio - 1):.0%} {more}" if f"{abs(ratio - 1):.0%}" != "0%" else "the same"
    composed = number(forward.composed_tokens_per_s, 3)
    yield f"{what}, measured: {_rate(forward)}; composed {composed}, {difference}."
    if not forward.close:
        yield from _causes(forward)


def _causes(forward: WholeForward) -> Iterator[str]:
    """Where the time of a forward goes that differs from the composed one."""
    parts_s, composed_s = forward.parts_s or {}, forward.composed_parts_s or {}
    named = [
        f"{PARTS[part]} ({seconds(parts_s[part])}, composed {seconds(composed_s[part])})"
        for part in forward.causes
    ]
    if named:
        yield f"The difference lies in {', and in '.join(named)}."
    if forward.one_layer_s is not None:
        time_s = forward.time_s.median
        change = forward.one_layer_s / time_s - 1
        yield (
            f"With weights and KV cache of one layer for all layers it takes {seconds(forward.one_layer_s)} "
            f"in place of {seconds(time_s)} ({change:+.0%}): the effect of caches."
        )
