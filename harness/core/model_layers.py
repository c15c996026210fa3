"""The layers of a language model, from the fields of its config."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from .errors import UsageError, short_repr
from .layers import (
    Attention,
    Experts,
    GroupedQueryAttention,
    Indexer,
    LatentAttention,
    LayerGroup,
    LinearAttention,
    Mlp,
    Projection,
)
from .linear_layers import LINEAR_LAYERS
from .model_families import Fields, attention_kinds
from .quantization import AttentionKind, Quantization
from .rotary import is_positive

_ATTENTIONS: Mapping[type, AttentionKind] = MappingProxyType(
    {GroupedQueryAttention: "grouped", LatentAttention: "latent", LinearAttention: "linear"}
)


def layer_groups(fields: Fields, quantization: Quantization) -> tuple[LayerGroup, ...]:
    """The layers by shape and formats, in the order in which these first occur.

    Raises:
        UsageError: fields are absent, of a wrong type, or contradict each other; one line that names one.
    """
    kinds, with_experts = _kinds(fields), _with_experts(fields)
    counts: Counter[LayerGroup] = Counter()
    for layer, kind in enumerate(kinds):
        group = _layer(fields, layer, kind, experts=layer in with_experts)
        formats = quantization.of_layer(layer, _ATTENTIONS.get(type(group.attention)))
        counts[replace(group, formats=formats)] += 1
    return tuple(replace(group, count=count) for group, count in counts.items())


def parameters_outside(fields: Fields) -> int:
    """Parameters outside of layers, embedding and lm_head: norms, learned positions, biases."""
    hidden = fields.required_size("hidden_size")
    norms = fields.flag("final_norm") + fields.flag("embedding_norm")
    positions = fields.size("learned_positions", least=0) or 0
    rows = positions + (fields.size("extra_positions") or 0 if positions else 0)
    bias = fields.required_size("vocab_size") if fields.flag("lm_head_bias") else 0
    return norms * _norm(fields, hidden) + rows * hidden + bias


def _norm(fields: Fields, elements: int) -> int:
    """Parameters of one norm."""
    return {"rms": 1, "layer": 2, "none": 0}[fields.text("norm")] * elements


# ---- which layers are which


def _kinds(fields: Fields) -> list[str]:
    """Kind of each layer: "full", "window", "linear", "mlp" or "moe"."""
    listed = _listed_kinds(fields)
    kinds = listed or _patterned_kinds(fields)
    if listed is not None and "window" in listed and fields.flag("use_window"):
        fields.required_size("window")
    if _window(fields) is None:
        kinds = ["full" if kind == "window" else kind for kind in kinds]
    return kinds


def _listed_kinds(fields: Fields) -> list[str] | None:
    """Kinds that the config lists; None where it lists none."""
    name, value = fields.raw("layer_types")
    if value is None:
        full = fields.indices("full_layers", first=1)
        full = fields.indices("full_indices") if full is None else full
        if full is None:
            return None
        other = fields.text("other_layers")
        linear = fields.indices("linear_layers", first=1)
        if linear is not None and linear != frozenset(range(fields.layers)) - full:
            raise UsageError(
                f"{fields.name('linear_layers')}: must be the layers that are not in "
                f"{fields.name('full_layers')}, was {len(linear)} of {fields.layers} beside {len(full)}"
            )
        return ["full" if layer in full else other for layer in range(fields.layers)]
    known = attention_kinds(fields.family)
    labels = fields.listed(name, list(value) if isinstance(value, str) else value)
    kinds = [known.get(str(label)) if isinstance(label, str | int) else None for label in labels]
    if None in kinds:
        unknown = short_repr(labels[kinds.index(None)])
        raise UsageError(f"cannot be modelled: {name} has {unknown}")
    return [kind for kind in kinds if kind is not None]


def _patterned_kinds(fields: Fields) -> list[str]:
    """Kinds by the family's pattern."""
    layers, other = range(fields.layers), fields.text("other_layers")
    every = fields.size("full_every")
    if every is not None:
        at = fields.size("full_at", least=-1)
        offset = every - 1 if at in (None, -1) else at
        return ["full" if layer % every == offset else other for layer in layers]
    if other == "linear":
        raise UsageError(f"lacks {fields.name('layer_types')}")
    first = fields.size("first_window_layer", least=0) or 0
    return [other if layer >= first else "full" for layer in layers]


def _window(fields: Fields) -> int | None:
    """Tokens of the sliding window; None if there is none, or if no context exceeds it."""
    if not fields.flag("use_window"):
        return None
    window, positions = fields.size("window"), fields.size("positions")
    if window is None or (positions is not None and window >= positions):
        return None
    return window


def _with_experts(fields: Fields) -> frozenset[int]:
    """Numbers of the layers with experts."""
    layers = range(fields.layers)
    if not any((fields.size("experts", layer, least=0) or 0) > 1 for layer in layers):
        return frozenset()
    name, types = fields.raw("moe_types")
    if types is not None:
        types = fields.listed(name, types)
        known = {"dense": False, "sparse": True, "moe": True}
        for each in types:
            if not isinstance(each, str) or each not in known:
                raise UsageError(f"cannot be modelled: {name} has {short_repr(each)}")
        return frozenset(layer for layer in layers if known[types[layer]])
    listed = fields.indices("moe_layers")
    if listed is not None:
        return listed
    first = fields.size("dense_first", least=0) or 0
    if first > len(layers):
        raise UsageError(f"{fields.name('dense_first')}: must be at most {len(layers)} layers, was {first}")
    last = fields.size("moe_last", least=0)
    dense = fields.indices("dense_layers") or ()
    return frozenset(
        layer
        for layer in range(first, len(layers) if last is None else min(last + 1, len(layers)))
        if layer not in dense and _at_step(fields, layer)
    )


def _at_step(fields: Fields, layer: int) -> bool:
    """Whether every n-th layer has experts and this is one, or the flag of its own says so."""
    if isinstance(fields.raw("moe_every")[1], list):
        return fields.flag("moe_every", layer)
    every = fields.size("moe_every") or 1
    at = fields.size("moe_at", least=-1)
    return layer % every == (every - 1 if at in (None, -1) else at)


# ---- one layer


def _layer(fields: Fields, layer: int, kind: str, *, experts: bool) -> LayerGroup:
    """One layer."""
    hidden = fields.required_size("hidden_size")
    attention: Attention | None = None
    mlp: Mlp | Experts | None = None
    other = (fields.size("norms", layer, least=0) or 0) * _norm(fields, hidden)
    other += fields.size("layer_scalars") or 0
    if kind == "linear":
        linear = LINEAR_LAYERS[fields.text("linear")](fields, hidden)
        attention, other = linear.attention, other + linear.other_parameters
    elif kind in {"full", "window"}:
        attention = _attention(fields, layer, kind)
        other += _attention_others(fields, attention, hidden)
    alone = fields.flag("alone")  # a layer is attention or an MLP
    if kind == "moe" or (experts and not alone):
        mlp = _experts(fields, layer)
        other += _expert_others(fields, mlp, hidden)
    elif kind == "mlp" or not alone:
        mlp = _mlp(fields, layer)
        other += _bias(fields, "mlp_bias", mlp.projections(hidden))
    return LayerGroup(count=1, attention=attention, mlp=mlp, other_parameters=other)


def _bias(fields: Fields, slot: str, projections: tuple[Projection, ...]) -> int:
    return sum(each.out_features for each in projections) if fields.flag(slot) else 0


def _attention(fields: Fields, layer: int, kind: str) -> GroupedQueryAttention | LatentAttention:
    q_heads = fields.required_size("q_heads", layer)
    kv_rank = fields.size("kv_rank", layer)
    if kv_rank is not None:
        return LatentAttention(
            q_heads=q_heads,
            q_rank=fields.size("q_rank", layer),
            kv_rank=kv_rank,
            nope_head_dim=fields.required_size("nope_head_dim", layer),
            rope_head_dim=fields.required_size("rope_head_dim", layer),
            v_head_dim=fields.required_size("v_head_dim", layer),
            output_gate=fields.flag("output_gate"),
            indexer=_indexer(fields, layer),
        )
    own_keys = kind == "full" and fields.flag("global_values_are_keys")
    kv_heads = fields.size("global_kv_heads", layer) if own_keys else None
    kv_heads = kv_heads or fields.required_size("kv_heads", layer)
    if q_heads % kv_heads:
        raise UsageError(
            f"{fields.name('q_heads')}: must be a multiple of {fields.name('kv_heads')}, {kv_heads}, "
            f"was {q_heads}"
        )
    return GroupedQueryAttention(
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=_head_dim(fields, layer, q_heads, kind),
        window=_window(fields) if kind == "window" else None,
        chunked=kind == "window" and fields.flag("chunked"),
        values_are_keys=own_keys,
        output_gate=fields.flag("output_gate"),
        indexer=_indexer(fields, layer),
        softcap=_softcap(fields),
        sinks=fields.flag("sinks"),
    )


def _softcap(fields: Fields) -> float | None:
    name, value = fields.raw("softcap")
    if value is None:
        return None
    if not is_positive(value):
        raise UsageError(f"{name}: must be a positive number, was {short_repr(value)}")
    return float(value)


def _head_dim(fields: Fields, layer: int, q_heads: int, kind: str) -> int:
    size = fields.size("global_head_dim", layer) if kind == "full" else None
    size = size or fields.size("head_dim", layer)
    if size is None:
        hidden = fields.required_size("hidden_size")
        size, rest = divmod(hidden, q_heads)
        if rest:
            raise UsageError(
                f"{fields.name('head_dim')}: absent, so {fields.name('hidden_size')} must be a multiple of "
                f"{fields.name('q_heads')}, was {hidden} and {q_heads}"
            )
    return size


def _indexer(fields: Fields, layer: int) -> Indexer | None:
    top_k = fields.size("index_top_k", layer)
    if top_k is None or not _is_indexed(fields, layer):
        return None
    return Indexer(
        heads=fields.required_size("index_heads", layer),
        head_dim=fields.required_size("index_dim", layer),
        top_k=top_k * (fields.size("index_block") or 1),
        weighted=fields.flag("index_weighted"),
    )


def _is_indexed(fields: Fields, layer: int) -> bool:
    """Whether a layer of a family with sparse attention has it: all do, unless the config says which."""
    if fields.raw("index_layers", layer)[1] is not None:
        return fields.flag("index_layers", layer)
    label = fields.text("index_label")
    return not label or fields.raw("layer_types", layer)[1] == label


def _attention_others(fields: Fields, attention: GroupedQueryAttention | LatentAttention, hidden: int) -> int:
    """Norms, biases and sinks of an attention."""
    others = hidden if fields.flag("o_bias") else 0
    if fields.flag("sinks"):
        others += attention.q_heads
    if attention.indexer is not None:  # of keys a norm with a bias, or norms of queries and keys
        others += 2 * attention.indexer.head_dim
    if isinstance(attention, LatentAttention):
        latents = attention.latent_elements + (attention.q_rank or 0)
        others += latents if fields.flag("latent_bias") else 0
        return others + attention.kv_rank + (attention.q_rank or 0)
    heads = {"none": 0, "head": 2, "full": attention.q_heads + attention.kv_heads}[fields.text("qk_norm")]
    return others + heads * attention.head_dim + _bias(fields, "qkv_bias", attention.projections(hidden)[:1])


def _mlp(fields: Fields, layer: int) -> Mlp:
    slot = "dense_size" if fields.size("dense_size", layer) is not None else "intermediate_size"
    size, rest = divmod(fields.required_size(slot, layer), fields.required_size("halves"))
    if rest:
        raise UsageError(
            f"{fields.name(slot)}: must be even, as it counts the gate too, was {2 * size + rest}"
        )
    return Mlp(intermediate_size=size, gated=fields.flag("gated"))


def _experts(fields: Fields, layer: int) -> Experts:
    count, per_token = (
        fields.required_size("experts", layer),
        fields.required_size("per_token", layer),
    )
    if per_token > count:
        raise UsageError(f"{fields.name('per_token')}: must be at most {count} experts, was {per_token}")
    expert = Mlp(intermediate_size=fields.required_size("expert_size", layer), gated=fields.flag("gated"))
    return Experts(
        count=count,
        per_token=per_token,
        expert=expert,
        shared=_shared(fields, layer, expert),
        hidden_size=fields.size("expert_hidden_size", layer),
    )


def _shared(fields: Fields, layer: int, expert: Mlp) -> Mlp | None:
    """The shared experts as one MLP, or the dense MLP that stands beside the experts."""
    if fields.flag("mlp_beside"):
        return _mlp(fields, layer)
    count = fields.size("shared", layer, least=0)
    size = fields.size("shared_size", layer, least=0) or 0
    elements = size if size and count != 0 else (count or 0) * expert.intermediate_size
    return Mlp(intermediate_size=elements, gated=expert.gated) if elements else None


def _expert_others(fields: Fields, experts: Experts, hidden: int) -> int:
    """Biases, gates and norms of a layer's experts, and the projections to their hidden size and back."""
    own = experts.expert.projections(hidden)
    others = experts.count * _bias(fields, "expert_bias", own)
    others += experts.count * (fields.flag("router_bias") + fields.flag("router_extra"))
    others += hidden + experts.count if fields.flag("router_scale") else 0
    others += (fields.size("moe_norms") or 0) * _norm(fields, hidden)
    if experts.hidden_size is not None:
        others += 2 * hidden * experts.hidden_size
    if experts.shared is not None:
        others += hidden if fields.flag("shared_gate") else 0
        others += _bias(fields, "mlp_bias", experts.shared.projections(hidden))
    return others
