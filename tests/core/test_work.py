"""Operations and bytes of every case, compared with integers computed by hand."""

import pytest
from decodetax.harness.core.cases import DecodeAttention, DecoderLayer, PrefillAttention, PrefillMatmul
from decodetax.harness.core.timed_model import TimedModel, load_timed_model
from decodetax.harness.core.work import Work
from hand_made import sweep
from msgspec import structs

# Weights: qkv 40 x (6 + 2 x 2) x 16 = 6400, o (6 x 16) x 40 = 3840, gate_up 40 x 112 = 4480,
# down 56 x 40 = 2240.
ODD = TimedModel(
    name="odd",
    source="made by hand",
    hidden_size=40,
    layers=3,
    q_heads=6,
    kv_heads=2,
    head_dim=16,
    intermediate_size=56,
    vocab_size=100,
    tied_embeddings=False,
)
HEADS = {"q_heads": 6, "kv_heads": 2, "head_dim": 16}


def matmul(dtype, rows=3):
    return PrefillMatmul(phase="prefill", part="o", rows=rows, in_features=5, out_features=7, dtype=dtype)


@pytest.mark.parametrize(
    ("dtype", "read", "written"),
    [
        # x 3 x 5, weight 7 x 5, out 3 x 7 elements
        pytest.param("bf16", {"x": 30, "weight": 70}, {"out": 42}, id="bf16"),
        pytest.param("fp16", {"x": 30, "weight": 70}, {"out": 42}, id="fp16"),
        pytest.param("fp32", {"x": 60, "weight": 140}, {"out": 84}, id="fp32"),
    ],
)
def test_matmul_reads_x_and_weight_once_and_writes_out_once(dtype, read, written):
    work = matmul(dtype).work()
    assert work.operation_terms == {"product": 210}  # 2 x 3 x 5 x 7
    assert work.read_terms == read
    assert work.written_terms == written


def test_batch_of_products_has_the_work_of_each():
    work = structs.replace(matmul("bf16"), batch=4).work()
    assert work.operation_terms == {"product": 840}
    assert (work.read_terms, work.written_terms) == ({"x": 120, "weight": 280}, {"out": 168})


def test_matmul_of_one_row_has_at_most_one_operation_per_byte():
    # 2 x 1 x 5 x 7 = 70 operations; 10 + 70 + 14 = 94 bytes
    assert matmul("bf16", rows=1).work().operations_per_byte == 70 / 94


@pytest.mark.parametrize(
    ("contexts", "dtype", "product", "read", "written"),
    [
        pytest.param(
            (4, 4),
            "bf16",
            1536,  # 2 x 8 tokens x 6 heads x 16
            # q 2 x 6 x 16 x 2; caches 8 tokens x 2 heads x 16 x 2; lengths 2 x 4
            {"q": 384, "k_cache": 512, "v_cache": 512, "context_lens": 8},
            {"out": 384},
            id="uniform",
        ),
        pytest.param(
            (1, 0, 7),
            "bf16",
            1536,  # the same 8 live tokens
            {"q": 576, "k_cache": 512, "v_cache": 512, "context_lens": 12},
            {"out": 576},
            id="ragged: live tokens alone",
        ),
        pytest.param(
            (1, 0, 7),
            "fp32",
            1536,
            {"q": 1152, "k_cache": 1024, "v_cache": 1024, "context_lens": 12},
            {"out": 1152},
            id="ragged in fp32: lengths stay int32",
        ),
        pytest.param(
            (0,),
            "bf16",
            0,
            {"q": 192, "k_cache": 0, "v_cache": 0, "context_lens": 4},
            {"out": 192},
            id="empty cache",
        ),
    ],
)
def test_decode_attention_counts_live_tokens(contexts, dtype, product, read, written):
    work = DecodeAttention(contexts=contexts, dtype=dtype, **HEADS).work()
    assert work.operation_terms == {"scores": product, "values": product}
    assert work.read_terms == read
    assert work.written_terms == written


@pytest.mark.parametrize(
    ("options", "operations", "read", "written"),
    [
        pytest.param(
            {"window": 3},
            {"scores": 960, "values": 960},  # 2 x (3 + 2) tokens x 6 heads x 16
            {"q": 384, "k_cache": 320, "v_cache": 320, "context_lens": 8},
            384,
            id="window: min(context, window) tokens",
        ),
        pytest.param(
            {"v_head_dim": 8},
            {"scores": 1728, "values": 864},  # 9 tokens
            {"q": 384, "k_cache": 576, "v_cache": 288, "context_lens": 8},
            192,
            id="values of their own size",
        ),
        pytest.param(
            {"v_head_dim": 8, "latent": True},
            {"scores": 1728, "values": 864},
            {"q": 384, "latent_cache": 576, "context_lens": 8},
            192,
            id="latent: read once",
        ),
        pytest.param(
            {"softcap": 50.0, "sinks": True},
            {"scores": 1728, "values": 1728},
            {"q": 384, "k_cache": 576, "v_cache": 576, "context_lens": 8, "sinks": 12},
            384,
            id="softcap and sinks",
        ),
    ],
)
def test_options_of_decode_attention_are_counted(options, operations, read, written):
    work = DecodeAttention(contexts=(7, 2), dtype="bf16", **HEADS, **options).work()
    assert work.operation_terms == operations
    assert work.read_terms == read
    assert work.written_terms == {"out": written}


def test_mla_decode_of_deepseek_v3_reads_each_latent_once():
    case = DecodeAttention(
        contexts=(4096,), q_heads=128, kv_heads=1, head_dim=576, v_head_dim=512, latent=True, dtype="bf16"
    )
    assert case.work().operations == 2 * 4096 * 128 * (576 + 512)
    assert case.work().read_terms["latent_cache"] == 4096 * 576 * 2


@pytest.mark.parametrize(("window", "pairs"), [(None, 15), (1, 5), (3, 12), (5, 15), (9, 15)])
def test_window_of_a_prompt_counts_the_pairs_in_it(window, pairs):
    # 5 tokens and a window of 3: 1 + 2 + 3 + 3 + 3 pairs
    case = PrefillAttention(
        sequences=2, prompt=5, q_heads=6, kv_heads=2, head_dim=16, v_head_dim=8, window=window, dtype="bf16"
    )
    assert case.work().operation_terms == {
        "scores": 2 * 2 * pairs * 6 * 16,
        "values": 2 * 2 * pairs * 6 * 8,
    }
    assert case.work().read_terms == {"q": 1920, "k": 640, "v": 320}
    assert case.work().written_terms == {"out": 960}


def test_decode_attention_capacity_is_its_longest_context():
    assert DecodeAttention(contexts=(1, 0, 7), dtype="bf16", **HEADS).capacity == 7
    assert DecodeAttention(contexts=(0,), dtype="bf16", **HEADS).capacity == 1


@pytest.mark.parametrize(
    ("sequences", "prompt", "dtype", "product", "read"),
    [
        # pairs 2 x (1 + 2 + 3) = 12: 2 x 12 x 6 x 16; q 6 tokens x 96 x 4, k and v 6 tokens x 32 x 4
        pytest.param(2, 3, "fp32", 2304, {"q": 2304, "k": 768, "v": 768}, id="two prompts of three"),
        # pairs 1; q 96 x 2, k and v 32 x 2
        pytest.param(1, 1, "bf16", 192, {"q": 192, "k": 64, "v": 64}, id="one token"),
        # pairs 3 x 10 = 30: 2 x 30 x 96; 12 tokens
        pytest.param(3, 4, "bf16", 5760, {"q": 2304, "k": 768, "v": 768}, id="three prompts of four"),
    ],
)
def test_prefill_attention_counts_causal_pairs(sequences, prompt, dtype, product, read):
    work = PrefillAttention(sequences=sequences, prompt=prompt, dtype=dtype, **HEADS).work()
    assert work.operation_terms == {"scores": product, "values": product}
    assert work.read_terms == read
    assert work.written_terms == {"out": read["q"]}  # as many elements as q


def test_prefill_layer_reads_weights_once_and_writes_the_cache():
    layer = DecoderLayer(phase="prefill", model=ODD, sequences=3, tokens=5, rows=16, dtype="bf16")
    work = layer.work()
    assert work.operation_terms == {
        "qkv": 192000,  # 2 x 15 tokens x 6400
        "o": 115200,  # 2 x 15 x 3840
        "gate_up": 134400,  # 2 x 15 x 4480
        "down": 67200,  # 2 x 15 x 2240
        "attention": 17280,  # 4 x (3 x 15 pairs) x 96
    }
    assert work.operations == 526080
    assert work.read_terms == {
        "hidden": 1200,  # 15 x 40 x 2
        "qkv": 12800,
        "o": 7680,
        "gate_up": 8960,
        "down": 4480,
        "norms": 160,  # 2 x 40 x 2
        "k_cache": 0,
        "v_cache": 0,
    }
    assert work.bytes_read == 35280
    assert work.written_terms == {"hidden": 1200, "k_cache": 960, "v_cache": 960}  # 15 x 2 x 16 x 2
    assert work.bytes_written == 3120


def test_decode_layer_reads_the_old_cache_and_writes_one_entry_per_sequence():
    layer = DecoderLayer(phase="decode", model=ODD, sequences=3, tokens=5, rows=3, dtype="fp32")
    work = layer.work()
    assert work.operation_terms == {
        "qkv": 38400,  # 2 x 3 x 6400
        "o": 23040,  # 2 x 3 x 3840
        "gate_up": 26880,  # 2 x 3 x 4480
        "down": 13440,  # 2 x 3 x 2240
        "attention": 5760,  # 4 x (3 x 5 tokens) x 96
    }
    assert work.operations == 107520
    assert work.read_terms == {
        "hidden": 480,  # 3 x 40 x 4
        "qkv": 25600,
        "o": 15360,
        "gate_up": 17920,
        "down": 8960,
        "norms": 320,
        "k_cache": 1536,  # 3 x 4 old tokens x 2 x 16 x 4
        "v_cache": 1536,
    }
    assert work.bytes_read == 71712
    assert work.written_terms == {"hidden": 480, "k_cache": 384, "v_cache": 384}  # 3 x 1 x 2 x 16 x 4
    assert work.bytes_written == 1248


@pytest.mark.parametrize(
    ("phase", "sequences", "rows", "attention"),
    [
        pytest.param(
            "prefill", 3, 16, PrefillAttention(sequences=3, prompt=5, dtype="bf16", **HEADS), id="prefill"
        ),
        pytest.param("decode", 3, 3, DecodeAttention(contexts=(5, 5, 5), dtype="bf16", **HEADS), id="decode"),
    ],
)
def test_parts_of_a_layer_are_its_own_cases(phase, sequences, rows, attention):
    layer = DecoderLayer(phase=phase, model=ODD, sequences=sequences, tokens=5, rows=rows, dtype="bf16")
    assert layer.attention == attention
    assert [(p.phase, p.part, p.rows, p.in_features, p.out_features) for p in layer.projections] == [
        (phase, "qkv", rows, 40, 160),
        (phase, "o", rows, 96, 40),
        (phase, "gate_up", rows, 40, 112),
        (phase, "down", rows, 56, 40),
    ]


def test_sums_and_intensity_take_every_term():
    work = Work(
        operation_terms={"a": 7, "b": 5}, read_terms={"x": 2, "y": 3}, written_terms={"out": 1, "state": 2}
    )
    assert (work.operations, work.bytes_read, work.bytes_written, work.bytes_total) == (12, 5, 3, 8)
    assert work.operations_per_byte == 1.5


def test_token_has_two_operations_per_weight():
    model = load_timed_model("llama-3.2-1b")
    one = sweep(batches=(1,)).output_token(model, 1, 16)
    layer = sum(case.work().operations for case in one.matmuls)
    token = model.layers * layer + one.lm_head.work().operations
    # A layer: 2048 x 3072 + 2048 x 2048 + 2048 x 16384 + 8192 x 2048 = 60817408 weights, 16 of them, and a
    # head of 2048 x 128256 = 262668288: 1235746816 weights.
    assert token == 2 * 1235746816
    # The published count of 1.2358e9 also holds 33 norms of 2048.
    assert model.parameters == 1235746816 + 33 * 2048


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_token_costs_the_same_projections_in_either_phase(phase):
    rows = 32
    token = sweep().input_token(ODD, 16) if phase == "prefill" else sweep().output_token(ODD, rows, 16)
    assert (
        sum(case.work().operations for case in token.matmuls) == rows * 2 * 16960
    )  # 6400 + 3840 + 4480 + 2240
