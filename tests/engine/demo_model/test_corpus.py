"""Cutting the plays into documents loses nothing and depends on the seed alone."""

import json
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.demo_model.corpus import (
    LONG_CUT,
    SHORT_CUT,
    Cut,
    Speech,
    cut_documents,
    parse_speeches,
    split_speeches,
)
from engine.demo_model.tokenizer import read_corpus
from engine.demo_model.tool_dialogues import tool_documents

SPEECHES = [Speech(f"NAME {i % 3}", f"line {i}") for i in range(40)]


def test_parsing_finds_speaker_and_lines() -> None:
    assert parse_speeches("First Citizen:\nBefore we proceed,\nhear me.\n\nAll:\nSpeak, speak.\n") == [
        Speech("First Citizen", "Before we proceed,\nhear me."),
        Speech("All", "Speak, speak."),
    ]


def test_parsing_keeps_the_whole_corpus() -> None:
    text = read_corpus()
    speeches = parse_speeches(text)
    kept = sum(len(speech.speaker) + len(speech.text) + len(":\n\n\n") for speech in speeches)
    assert kept >= 0.99 * len(text)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), cut=st.sampled_from((SHORT_CUT, LONG_CUT, Cut((2, 2), (1, 1)))))
def test_every_speech_lands_in_exactly_one_document(seed: int, cut: Cut) -> None:
    said: list[str] = []
    for document in cut_documents(SPEECHES, cut, random.Random(seed)):
        if document.text is not None:
            said += [speech.text for speech in parse_speeches(document.text)]
        else:
            said += [m["content"] or "" for m in document.messages if m["role"] != "system"]
    assert said == [speech.text for speech in SPEECHES]


def test_equal_seeds_give_equal_documents() -> None:
    first, again, other = (list(cut_documents(SPEECHES, SHORT_CUT, random.Random(seed))) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_validation_is_the_unseen_end() -> None:
    training, validation = split_speeches(SPEECHES, 0.25)
    assert training + validation == SPEECHES
    assert len(validation) == 10


def test_tool_dialogues_call_a_tool_on_offer_with_its_own_parameter() -> None:
    calls = 0
    for document in tool_documents(SPEECHES, 200, random.Random(3)):
        offered = {json.dumps(tool["function"]): tool["function"] for tool in document.tools}.values()
        parameters = {f["name"]: f["parameters"]["required"] for f in offered}  # type: ignore[index,call-overload]
        for message in document.messages:
            for call in message.get("tool_calls", []):
                calls += 1
                assert list(call["function"]["arguments"]) == parameters[call["function"]["name"]]
    assert calls > 100
