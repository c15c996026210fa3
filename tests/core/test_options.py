"""Sizes, lists and words on the command line: what they mean, and what is said of those that mean nothing."""

import click
import pytest
from decodetax.harness.core import options
from decodetax.harness.core.errors import UsageError


def value(parser, text):
    return parser(None, click.Option(["--size"]), text)


def refusal(parser, text):
    with pytest.raises(UsageError) as refused:
        value(parser, text)
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("8k", 8192), ("8K", 8192), ("128Ki", 131072), ("1M", 2**20), ("2Mi", 2**21), ("007", 7)],
)
def test_a_size_counts_k_by_1024(text, size):
    assert value(options.SIZE, text) == size
    assert value(options.SIZES, text) == (size,)


@pytest.mark.parametrize(
    "text", ["0k", "k", "8kk", "8 k", "1.5k", "8kB", "8g", "-8k", "2048M", "99999999999k", "8KI"]
)
def test_a_suffix_alone_or_of_another_unit_is_no_size(text):
    assert repr(text) in refusal(options.SIZE, text)
    assert "whole numbers" in refusal(options.SIZES, text)


def test_the_largest_size_is_that_of_an_int32():
    assert value(options.SIZE, "2047M") == 2047 * 2**20
    assert value(options.SIZE, "2147483647") == 2**31 - 1


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("1,8,32", (1, 8, 32)),
        ("32, 8, 8", (8, 32)),
        ("1-64", (1, 2, 4, 8, 16, 32, 64)),
        ("1-100", (1, 2, 4, 8, 16, 32, 64, 100)),
        ("3-24,5", (3, 5, 6, 12, 24)),
        ("1k-4k", (1024, 2048, 4096)),
        ("8-8", (8,)),
        ("1-2147483647", (*(2**n for n in range(31)), 2**31 - 1)),
        ("1,128", (1, 128)),
        ("16, 384", (16, 384)),
        ("1,8,024", (1, 8, 24)),
    ],
)
def test_a_list_has_sizes_and_ranges_of_doublings(text, sizes):
    assert value(options.SIZES, text) == sizes


@pytest.mark.parametrize("text", ["64-1", "1-", "-64", "1-2-4", "1--4", "0-4", "1-x", "1..64"])
def test_a_range_has_two_sizes_in_order(text):
    assert repr(text) in refusal(options.SIZES, text)


@pytest.mark.parametrize(
    ("text", "number"), [("1,024", 1024), ("128,000", 128_000), ("1,048,576", 1_048_576), ("4,096", 4096)]
)
@pytest.mark.parametrize("parser", [options.SIZE, options.SIZES, options.LENGTHS, options.TOKENS])
def test_a_thousands_separator_is_refused_by_name(parser, text, number):
    message = refusal(parser, text)
    assert "thousands separator" in message
    assert f"write {number}" in message


@pytest.mark.parametrize("parser", [options.SIZES, options.LENGTHS])
@pytest.mark.parametrize(("text", "spaced"), [("16,384", "16, 384"), ("32,768", "32, 768")])
def test_a_list_that_reads_as_a_power_of_two_wants_a_space(parser, text, spaced):
    message = refusal(parser, text)
    assert text.replace(",", "") in message
    assert f"'{spaced}'" in message
    assert value(parser, spaced) == tuple(map(int, text.split(",")))


def test_lengths_keep_their_order():
    assert value(options.LENGTHS, "2k,0,37") == (2048, 0, 37)


@pytest.mark.parametrize("text", ["1k", "2.5M", "8Ki"])
def test_tokens_of_a_price_have_no_suffix_that_may_mean_1000_or_1024(text):
    assert "1000 or by 1024" in refusal(options.TOKENS, text)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("FP8", "fp8"),
        ("bf-16", "bf16"),
        ("e4m3", "fp8"),
        ("float16", "fp16"),
        ("awq", "int4"),
        ("fp9", "fp8"),
    ],
)
def test_another_name_of_a_dtype_suggests_it(word, meant):
    message = refusal(options.one_of("bf16", "fp16", "fp8", "int4"), word)
    assert "is not one of bf16, fp16, fp8, int4; did you mean" in message
    assert meant in message.partition("did you mean")[2]


def test_a_word_like_no_other_has_no_suggestion():
    assert refusal(options.one_of("bf16", "fp8"), "zzz").endswith("is not one of bf16, fp8")
