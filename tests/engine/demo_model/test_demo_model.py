"""The committed demonstration model: complete, small, and with a tokenizer and template that hold together."""

import importlib
import json
import struct
from types import ModuleType
from typing import Any

import pytest

from engine.demo_model.corpus import Document, Message
from engine.demo_model.shape import LlamaShape
from engine.demo_model.tokenizer import DEMO_MODEL_DIR, VOCAB_SIZE, read_corpus, train_tokenizer
from engine.demo_model.tool_dialogues import weather_tool

TEXTS = ("O Romeo, Romeo! wherefore art thou Romeo?", "  two  spaces\n\n\tand a tab ", 'naïve 你好 🙂 {"a": [1, 2]}')
GREETING: Message = {"role": "user", "content": "Good morrow."}


@pytest.fixture(scope="module")
def train() -> ModuleType:
    """Load it late, with transformers: four seconds of CPU, else for every process that collects this file."""
    return importlib.import_module("engine.demo_model.train")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return importlib.import_module("transformers").AutoTokenizer.from_pretrained(str(DEMO_MODEL_DIR))


def render(tokenizer: Any, messages: list[Message], **options: Any) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return text


def test_folder_is_complete_and_small() -> None:
    files = {file.name: file.stat().st_size for file in DEMO_MODEL_DIR.iterdir()}
    assert set(files) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert files["model.safetensors"] <= 8_000_000


def test_weights_are_those_of_the_stated_shape(train: ModuleType) -> None:
    config = json.loads((DEMO_MODEL_DIR / "config.json").read_text(encoding="utf-8"))
    assert config == train.DEMO_SHAPE.config()
    with (DEMO_MODEL_DIR / "model.safetensors").open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_bytes))
    header.pop("__metadata__")
    counts = [count_elements(entry["shape"]) for entry in header.values()]
    assert sum(counts) == train.DEMO_SHAPE.num_parameters
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}


def count_elements(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def test_committed_tokenizer_is_what_training_makes() -> None:
    committed = json.loads((DEMO_MODEL_DIR / "tokenizer.json").read_text(encoding="utf-8"))
    assert json.loads(train_tokenizer(read_corpus()).to_str()) == committed


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_gives_back_any_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer) == VOCAB_SIZE


def test_chat_without_tools(tokenizer: Any) -> None:
    messages: list[Message] = [
        {"role": "system", "content": "You are Romeo."},
        GREETING,
        {"role": "assistant", "content": "Is the day so young?"},
        {"role": "user", "content": "But new struck nine."},
    ]
    assert render(tokenizer, messages, add_generation_prompt=True) == (
        "<|begin|><|system|>You are Romeo.<|end|><|user|>Good morrow.<|end|>"
        "<|assistant|>Is the day so young?<|end|><|user|>But new struck nine.<|end|><|assistant|>"
    )


def test_tools_stand_in_the_system_part(tokenizer: Any) -> None:
    rendered = render(tokenizer, [GREETING], tools=[weather_tool()], add_generation_prompt=True)
    assert rendered.startswith("<|begin|><|system|>You may call these tools:\n<tools>\n")
    between = rendered.partition("<tools>\n")[2].partition("\n</tools>")[0]
    assert json.loads(between) == weather_tool()
    assert rendered.endswith("<|end|><|user|>Good morrow.<|end|><|assistant|>")
    assert render(tokenizer, [GREETING], tools=[weather_tool()], add_generation_prompt=True) == rendered


@pytest.mark.parametrize("content", [None, "Let me look."])
def test_tool_calls_have_the_hermes_form(tokenizer: Any, content: str | None) -> None:
    call: Message = {
        "role": "assistant",
        "content": content,
        "tool_calls": [
            {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Verona"}}},
            {"type": "function", "function": {"name": "get_time", "arguments": {"city": "Rome"}}},
        ],
    }
    answer: Message = {"role": "tool", "content": '{"sky": "clear"}'}
    rendered = render(tokenizer, [GREETING, call, answer])
    turn = rendered.partition("<|assistant|>")[2].partition("<|end|>")[0]
    assert turn.partition("<tool_call>")[0].strip() == (content or "")
    parts = [part.partition("</tool_call>")[0] for part in turn.split("<tool_call>")[1:]]
    assert [json.loads(part) for part in parts] == [
        {"name": "get_weather", "arguments": {"city": "Verona"}},
        {"name": "get_time", "arguments": {"city": "Rome"}},
    ]
    assert rendered.endswith('<|tool|>{"sky": "clear"}<|end|>')


def test_markers_are_single_tokens_and_tool_calls_survive_decoding(tokenizer: Any) -> None:
    ids = tokenizer("<|user|><tool_call></tool_call><|end|>", add_special_tokens=False)["input_ids"]
    assert len(ids) == 4
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<tool_call></tool_call>"


def test_training_sees_what_serving_will_send(tokenizer: Any, train: ModuleType) -> None:
    messages: tuple[Message, ...] = (GREETING, {"role": "assistant", "content": "Is the day so young?"})
    served = tokenizer.apply_chat_template([GREETING], add_generation_prompt=True, return_dict=True)["input_ids"]
    trained = train.encode_document(tokenizer, Document(messages=messages))
    assert trained[: len(served)] == served
    assert trained[-1] == tokenizer.eos_token_id


def test_an_unknown_role_is_refused(tokenizer: Any) -> None:
    with pytest.raises(Exception, match="unknown role: ghost"):
        tokenizer.apply_chat_template([{"role": "ghost", "content": "Mark me."}], tokenize=False)


def test_number_of_parameters_counts_a_tied_embedding_once() -> None:
    shape = LlamaShape(hidden=64, layers=1, heads=1, kv_heads=1, intermediate=128, vocab=2048)
    tied = LlamaShape(hidden=64, layers=1, heads=1, kv_heads=1, intermediate=128, vocab=2048, tied=True)
    assert shape.num_parameters - tied.num_parameters == 2048 * 64
