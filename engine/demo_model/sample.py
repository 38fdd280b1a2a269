"""The README of the demonstration model, with a sample of what the model says.

Owns the questions asked and the page's text. It must not know how the model was trained.
"""

from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.demo_model.corpus import Message
from engine.demo_model.tool_dialogues import weather_tool

_SYSTEM: Final = "You are Romeo."
_QUESTIONS: Final = ("Good morrow, sir. What news from Rome?", "Why dost thou weep? Speak, and tell me all.")
_BEGINNING: Final = "ROMEO:\n"
_WEATHER_QUESTION: Final = "What is the weather in Verona?"
_ANSWER_TOKENS: Final = 90

_README: Final = """\
# baton-demo

A Llama of 4 million weights that speaks like a play by Shakespeare. It is here so that `make serve` answers on any
machine, at once and without a download. It knows nothing and is not meant to.

- Format: Hugging Face (Llama; 5 layers, hidden 256, 4 query and 2 key-value heads of 64, bfloat16, 4096 positions).
- Text: 1.1 MB of Shakespeare's plays (public domain, see `engine/demo_model/data/README.md`), and made-up questions
  that teach it three tools: `get_weather`, `get_time` and `send_letter`, each with one parameter. It has learnt the
  form of a call; the city that it names is often not the one asked about.
- Chat: roles system, user, assistant and tool; a system message `You are NAME.` picks a character. Tool calls have the
  Hermes form, so vLLM's parser `hermes` reads them.
- Completion: begin as the plays do, with a speaker: `ROMEO:` and a new line.
- Training: `make model` (fixed seed; it took 34 minutes on two busy cores). Validation loss: {loss:.3f} nats per token.
- Licence: that of this repository.

## What it says

{samples}
"""


def write_readme(folder: Path, loss: float) -> None:
    """Let the model in `folder` answer a few questions, seeded, and write its README.md."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    samples = [
        _sample(tokenizer, model, [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": question}])
        for question in _QUESTIONS
    ]
    samples.append(_sample(tokenizer, model, [{"role": "user", "content": _WEATHER_QUESTION}], tools=True))
    samples.append(_completion_sample(tokenizer, model))
    page = _README.format(loss=loss, samples="\n\n".join(samples))
    (folder / "README.md").write_text(page, encoding="utf-8")


def _sample(tokenizer: Any, model: Any, messages: list[Message], *, tools: bool = False) -> str:
    answer = answer_messages(tokenizer, model, messages, tools=tools)
    asked = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
    offered = " (offered `get_weather`)" if tools else ""
    return f"Asked{offered}:\n\n```text\n{asked}\n```\n\nAnswered:\n\n```text\n{answer}\n```"


def _completion_sample(tokenizer: Any, model: Any) -> str:
    torch.manual_seed(1)
    prompt = tokenizer(_BEGINNING, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        output = model.generate(**prompt, max_new_tokens=_ANSWER_TOKENS, do_sample=True)
    text = tokenizer.decode(output[0], skip_special_tokens=True).strip()
    return f"Begun with `ROMEO:` and continued:\n\n```text\n{text}\n```"


def answer_messages(tokenizer: Any, model: Any, messages: list[Message], *, tools: bool = False) -> str:
    """Return the model's answer, sampled with its default settings and a fixed seed, greedily if tools are offered."""
    torch.manual_seed(1)
    prompt = tokenizer.apply_chat_template(
        messages,
        tools=[weather_tool()] if tools else None,
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        output = model.generate(**prompt, max_new_tokens=_ANSWER_TOKENS, do_sample=not tools)
    answer: str = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer.strip()
