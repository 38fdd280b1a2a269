"""The training text as documents: speeches of plays, cut into conversations and runs of plain text.

Owns parsing and cutting; every choice comes from the generator it is given. It must not know of tokens.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NotRequired, TypedDict

JsonValue = str | int | float | bool | None | Sequence["JsonValue"] | dict[str, "JsonValue"]


class FunctionCall(TypedDict):
    """What a tool call names."""

    name: str
    arguments: dict[str, JsonValue]


class ToolCall(TypedDict):
    """One entry of an assistant message's `tool_calls`, as in the OpenAI API."""

    type: Literal["function"]
    function: FunctionCall


class Message(TypedDict):
    """One message of a conversation, as the chat template takes it."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None
    tool_calls: NotRequired[list[ToolCall]]


@dataclass(frozen=True, slots=True)
class Document:
    """A conversation (with the tools it offers), or a run of plain text if `text` is given."""

    messages: tuple[Message, ...] = ()
    tools: tuple[dict[str, JsonValue], ...] = ()
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Speech:
    """What one character says before another speaks."""

    speaker: str
    text: str


@dataclass(frozen=True, slots=True)
class Cut:
    """How long documents are: conversations in turns (even), plain runs in speeches, both inclusive."""

    chat_turns: tuple[int, int]
    plain_speeches: tuple[int, int]


SHORT_CUT: Final = Cut(chat_turns=(2, 8), plain_speeches=(4, 16))
LONG_CUT: Final = Cut(chat_turns=(24, 64), plain_speeches=(48, 120))
# Conversations are what the model is for; plain runs keep `/v1/completions` usable.
_CHAT_SHARE: Final = 0.65
_PERSONA_SHARE: Final = 0.6
_OTHER_SYSTEM_SHARE: Final = 0.1
_OTHER_SYSTEMS: Final = (
    "You are a helpful assistant.",
    "You are an actor in a play by Shakespeare.",
    "Answer briefly.",
    "Answer in the manner of Shakespeare.",
)


def parse_speeches(text: str) -> list[Speech]:
    """Split the plays, in which every speech is `NAME:`, its lines and an empty line."""
    speeches = []
    for block in text.split("\n\n"):
        speaker, separator, said = block.strip().partition(":\n")
        if separator and said.strip():
            speeches.append(Speech(speaker, said.strip()))
    return speeches


def split_speeches(speeches: Sequence[Speech], validation_share: float) -> tuple[list[Speech], list[Speech]]:
    """Split off the last part for validation: whole scenes that training never sees."""
    at = int(len(speeches) * (1.0 - validation_share))
    return list(speeches[:at]), list(speeches[at:])


def cut_documents(speeches: Sequence[Speech], cut: Cut, rng: random.Random) -> Iterator[Document]:
    """Cut the plays into documents, each speech in exactly one, with new boundaries at every call."""
    at = 0
    while at < len(speeches):
        if rng.random() < _CHAT_SHARE:
            turns = 2 * rng.randint(cut.chat_turns[0] // 2, cut.chat_turns[1] // 2)
            yield _conversation(speeches[at : at + turns], rng)
        else:
            turns = rng.randint(*cut.plain_speeches)
            yield _plain_run(speeches[at : at + turns])
        at += turns


def _plain_run(speeches: Sequence[Speech]) -> Document:
    return Document(text="\n\n".join(f"{speech.speaker}:\n{speech.text}" for speech in speeches))


def _conversation(speeches: Sequence[Speech], rng: random.Random) -> Document:
    messages: list[Message] = []
    system = _system_prompt(speeches, rng)
    if system is not None:
        messages.append({"role": "system", "content": system})
    for index, speech in enumerate(speeches):
        messages.append({"role": "assistant" if index % 2 else "user", "content": speech.text})
    return Document(messages=tuple(messages))


def _system_prompt(speeches: Sequence[Speech], rng: random.Random) -> str | None:
    answering = {speech.speaker for speech in speeches[1::2]}
    if len(answering) == 1 and rng.random() < _PERSONA_SHARE:
        return f"You are {answering.pop().title()}."
    return rng.choice(_OTHER_SYSTEMS) if rng.random() < _OTHER_SYSTEM_SHARE else None
