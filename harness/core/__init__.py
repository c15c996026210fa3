"""Nouns that several packages need: cases and their work, models, GPUs, records, statistics, tables."""
