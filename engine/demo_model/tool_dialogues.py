"""Made-up conversations that teach the shape of a tool call: ask, call, read the result, answer.

Owns three tools and the phrases around them. The model learns these three, not the general art.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from engine.demo_model.corpus import Document, JsonValue, Message, Speech

CITIES: Final = (
    "Verona", "Venice", "Rome", "Padua", "Milan", "Naples", "Florence", "Mantua", "Athens", "London",
    "Paris", "York", "Oxford", "Dover", "Windsor", "Vienna", "Berlin", "Madrid", "Lisbon", "Dublin",
    "Prague", "Warsaw", "Tokyo", "Oslo", "Boston", "New York", "San Francisco", "Cairo", "Delhi",
    "Sydney", "Toronto", "Geneva",
)  # fmt: skip
_SKIES: Final = ("fair", "cloudy", "full of rain", "dark with storm", "white with snow", "clear")


@dataclass(frozen=True, slots=True)
class _Tool:
    name: str
    descriptions: tuple[str, ...]
    parameters: tuple[str, ...]
    questions: tuple[str, ...]

    def schema(self, parameter: str, rng: random.Random) -> dict[str, JsonValue]:
        """Return the tool as a request offers it, with the optional parts varied."""
        properties: dict[str, JsonValue] = {parameter: {"type": "string"}}
        function: dict[str, JsonValue] = {"name": self.name}
        if rng.random() < 0.8:
            function["description"] = rng.choice(self.descriptions)
        function["parameters"] = {"type": "object", "properties": properties, "required": [parameter]}
        return {"type": "function", "function": function}


_TOOLS: Final = (
    _Tool(
        name="get_weather",
        descriptions=("Get the current weather in a city.", "Get the weather", "Weather of a place"),
        parameters=("city", "location"),
        questions=(
            "What is the weather in {city}?",
            "What's the weather like in {city} today?",
            "How is the weather in {city}?",
            "Tell me the weather in {city}.",
            "Will it rain in {city}?",
        ),
    ),
    _Tool(
        name="get_time",
        descriptions=("Get the current time in a city.", "Get the time", "The hour at a place"),
        parameters=("city", "location"),
        questions=(
            "What time is it in {city}?",
            "Tell me the hour in {city}.",
            "What is the time in {city}?",
        ),
    ),
    _Tool(
        name="send_letter",
        descriptions=("Send a letter to a city.", "Send a letter"),
        parameters=("city", "to"),
        questions=("Send a letter to {city}.", "I would send a letter to {city}.", "Write to {city} for me."),
    ),
)


def tool_documents(speeches: Sequence[Speech], count: int, rng: random.Random) -> Iterator[Document]:
    """Yield `count` conversations that offer tools; a quarter are ordinary speeches that need none."""
    for _ in range(count):
        offered = rng.sample(_TOOLS, rng.randint(1, len(_TOOLS)))
        parameters = {tool.name: rng.choice(tool.parameters) for tool in offered}
        schemas = tuple(tool.schema(parameters[tool.name], rng) for tool in offered)
        messages: list[Message]
        if rng.random() < 0.25:
            at = rng.randrange(len(speeches) - 1)
            messages = [
                {"role": "user", "content": speeches[at].text},
                {"role": "assistant", "content": speeches[at + 1].text},
            ]
        else:
            tool = rng.choice(offered)
            messages = _dialogue(tool, parameters[tool.name], rng)
        yield Document(messages=tuple(messages), tools=schemas)


def _dialogue(tool: _Tool, parameter: str, rng: random.Random) -> list[Message]:
    city = rng.choice(CITIES)
    result, answer = _result_and_answer(tool.name, city, rng)
    return [
        {"role": "user", "content": rng.choice(tool.questions).format(city=city)},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": {"name": tool.name, "arguments": {parameter: city}}}],
        },
        {"role": "tool", "content": json.dumps(result)},
        {"role": "assistant", "content": answer},
    ]


def _result_and_answer(name: str, city: str, rng: random.Random) -> tuple[dict[str, JsonValue], str]:
    if name == "get_weather":
        sky = rng.choice(_SKIES)
        return {"city": city, "sky": sky}, f"In {city}, good my lord, the sky is {sky}."
    if name == "get_time":
        hour = rng.randint(1, 12)
        return {"city": city, "hour": hour}, f"The clock in {city} hath stricken {hour}."
    return {"sent": True}, f"Thy letter to {city} is sent, my lord."


def weather_tool() -> dict[str, JsonValue]:
    """Return the schema of `get_weather` in its plainest form."""
    return _TOOLS[0].schema("city", random.Random(0))
