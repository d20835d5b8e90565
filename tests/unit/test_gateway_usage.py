"""Tokens are read from an answer as it passes, wherever its pieces are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudejobs.gateway.prices import Price, PriceTable
from claudejobs.gateway.usage import MAX_LINE, Meter, Usage

COUNTS = st.integers(0, 10**7)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, Usage]:
    """A stream, as the API writes it, and what it used. The model's text may look like anything."""
    usage = draw(st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    told = {
        "input_tokens": usage.input_tokens,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
    }
    start = {"model": "claude-x", "content": [], "usage": told | {"output_tokens": 1}}
    texts = st.text() | st.sampled_from(
        ['data: {"type":"message_delta","usage":{"output_tokens":9}}', '"usage"', "\n\n", "event: message_start"]
    )
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}]
    events += [
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}}
        for text in draw(st.lists(texts, max_size=5))
    ]
    events += draw(st.lists(st.just({"type": "ping"}), max_size=2))
    events += [{"type": "message_delta", "usage": {"output_tokens": draw(COUNTS)}}] * draw(st.integers(0, 2))
    events += [{"type": "message_delta", "usage": {"output_tokens": usage.output_tokens}}, {"type": "message_stop"}]
    ascii_only = draw(st.booleans())
    text = "".join(
        f"event: {event['type']}{end}data: {json.dumps(event, ensure_ascii=ascii_only)}{end}{end}" for event in events
    )
    return text.encode("utf-8", "surrogatepass"), usage


def metered(pieces: list[bytes], streamed: bool = True) -> Meter:
    meter = Meter(streamed)
    for piece in pieces:
        meter.feed(piece)
    meter.end()
    return meter


@given(streams(), st.data())
def test_a_stream_is_counted_wherever_it_is_cut(stream: tuple[bytes, Usage], data: st.DataObject) -> None:
    text, usage = stream
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=20)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    meter = metered(pieces)
    assert (meter.usage, meter.model) == (usage, "claude-x")


@given(streams())
def test_each_byte_may_come_alone(stream: tuple[bytes, Usage]) -> None:
    text, usage = stream
    assert metered([text[at : at + 1] for at in range(len(text))]).usage == usage


@given(st.lists(st.binary(max_size=200)), st.booleans())
def test_no_bytes_break_it(pieces: list[bytes], streamed: bool) -> None:
    metered(pieces, streamed)


def test_a_stream_that_is_cut_counts_what_it_told() -> None:
    start = {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 7, "output_tokens": 1}}}
    meter = metered([f"data: {json.dumps(start)}\n\ndata: {{".encode()])
    assert meter.usage == Usage(input_tokens=7, output_tokens=1)


def test_a_line_without_end_is_not_kept_and_the_next_counts() -> None:
    delta = b'data: {"type":"message_delta","usage":{"output_tokens":3}}\n'
    pieces = [b"data: " + b"x" * 1000] * (2 * MAX_LINE // 1000)
    assert metered([*pieces, b"\n", delta]).usage.output_tokens == 3


def test_a_plain_answer_is_counted_as_a_whole() -> None:
    usage = {
        "input_tokens": 10,
        "output_tokens": 20,
        "cache_creation_input_tokens": 300,
        "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
        "server_tool_use": {"web_search_requests": 2},
    }
    text = json.dumps({"type": "message", "model": "m", "usage": usage}).encode()
    meter = metered([text[:30], text[30:]], streamed=False)
    assert meter.usage == Usage(10, 20, 0, 300, 200, 2)
    assert meter.model == "m"


@pytest.mark.parametrize("usage", [None, [], {"input_tokens": "7"}, {"input_tokens": -1}, {"output_tokens": True}])
def test_what_is_no_count_is_not_taken(usage: Any) -> None:
    meter = metered([json.dumps({"model": 7, "usage": usage}).encode()], streamed=False)
    assert (meter.usage, meter.model) == (Usage(), None)


def test_prices() -> None:
    table = PriceTable({"claude-opus-4-5": Price(input=1, output=2), "mine": Price(input=100, output=0, cache_read=7)})
    million = Usage(10**6, 10**6, 10**6, 2 * 10**6, 10**6)
    # 3 of input, 15 of output, a tenth of 3 for reading, 1.25 and 2 times 3 for writing.
    assert table.cost("claude-sonnet-4-5-20250929", million) == pytest.approx(3 + 15 + 0.3 + 3.75 + 6)
    assert table.cost("claude-opus-4-5", Usage(10**6, 10**6)) == pytest.approx(3)
    assert table.cost("claude-opus-4-1", Usage(10**6, 10**6)) == pytest.approx(90)
    assert table.cost("mine-2", Usage(cache_read_tokens=10**6)) == pytest.approx(7)
    assert table.cost("claude-haiku-5-5", Usage(100_000)) == pytest.approx(0.01)
    assert table.cost("claude-haiku-5-5", Usage(100_000, cache_read_tokens=1)) == pytest.approx(0.05, rel=1e-4)
    assert table.cost("claude-sonnet-4-5", Usage(web_searches=3)) == pytest.approx(0.03)
    assert table.cost("unheard-of", million) is None
    assert table.at_most(Usage(10**6)) == pytest.approx(100)
