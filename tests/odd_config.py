"""A small config.json in which no field equals another one or follows from it, so that a mix-up shows."""

CONFIG = {
    "model_type": "llama",
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "intermediate_size": 200,
    "vocab_size": 1001,
    "tie_word_embeddings": False,
}
