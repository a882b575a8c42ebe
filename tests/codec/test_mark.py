"""Marks between transitions: a round trip, and what is refused."""

import numpy as np
import pytest
from codec_trees import assert_same

from agentlace.codec import Mark, decode_mark, encode, encode_mark
from agentlace.codec.mark import ABORTED, BEGIN, DISCARD, END, MAX_BYTES
from agentlace.errors import DecodeError, EncodeError


def received(mark):
    return decode_mark(bytes(encode_mark(mark)))


@pytest.mark.parametrize(
    "mark",
    [
        Mark(BEGIN, None, 1, 12.5, {"task": "stack", "goal": np.arange(6, dtype=np.float32)}),
        Mark(END, ABORTED, 3, 13.0),
        Mark(DISCARD, None, 3, 13.0),
    ],
    ids=lambda mark: mark.what,
)
def test_what_arrives_is_what_was_said(mark):
    found = received(mark)
    assert (found.what, found.how, found.episode, found.at_s) == (
        *(mark.what, mark.how, mark.episode, mark.at_s),
    )
    assert_same(found.metadata, dict(mark.metadata))


def test_metadata_may_change_once_it_was_encoded():
    goal = np.zeros(1000)
    frame = encode_mark(Mark(BEGIN, metadata={"goal": goal}))
    goal += 1
    assert not decode_mark(bytes(frame)).metadata["goal"].any()


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({1: "x"}, "not a name"),
        ({"x": object()}, "object"),
        ({"x": np.zeros(MAX_BYTES, np.uint8)}, "more than a mark's"),
    ],
)
def test_what_may_not_travel_is_refused(metadata, reason):
    with pytest.raises(EncodeError, match=reason):
        encode_mark(Mark(BEGIN, metadata=metadata))


@pytest.mark.parametrize(
    "change",
    [
        {"what": "pause"},
        {"what": END, "how": None},
        {"what": END, "how": "tired"},
        {"what": BEGIN, "how": ABORTED},
        {"episode": "1"},
        {"at_s": None},
    ],
    ids=str,
)
def test_what_is_no_mark_is_refused(change):
    meta = {"what": BEGIN, "how": None, "episode": 1, "at_s": 0.0} | change
    with pytest.raises(DecodeError, match="a mark"):
        decode_mark(bytes(encode({"metadata": {}}, "mark", meta)))


@pytest.mark.parametrize("tree", [None, {}, {"metadata": []}, {"metadata": {3: 1}}], ids=str)
def test_metadata_without_names_is_refused(tree):
    meta = {"what": BEGIN, "how": None, "episode": 1, "at_s": 0.0}
    with pytest.raises(DecodeError, match="metadata"):
        decode_mark(bytes(encode(tree, "mark", meta)))


def test_another_frame_is_refused():
    with pytest.raises(DecodeError, match="kind"):
        decode_mark(bytes(encode({"metadata": {}}, "chunk", {})))
