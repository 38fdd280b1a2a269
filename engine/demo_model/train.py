"""Training of the demonstration model on the processor, in minutes, from a fixed seed.

Owns the recipe: what the model reads, in what order, with which optimizer. It must not know who serves it.
"""

import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from engine.demo_model.corpus import (
    LONG_CUT,
    SHORT_CUT,
    Cut,
    Document,
    Speech,
    cut_documents,
    parse_speeches,
    split_speeches,
)
from engine.demo_model.shape import LlamaShape, write_config
from engine.demo_model.tokenizer import BEGIN, END, MAX_POSITIONS, read_corpus, save_tokenizer, train_tokenizer
from engine.demo_model.tool_dialogues import tool_documents

logger = logging.getLogger(__name__)

# 3,967,744 weights: 7.9 MB in bfloat16, so that the folder can live in the repository.
DEMO_SHAPE: Final = LlamaShape(hidden=256, layers=5, heads=4, kv_heads=2, intermediate=640, tied=True, dtype="bfloat16")
DEMO_SAMPLING: Final = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
_VALIDATION_SHARE: Final = 0.05
_WEIGHT_DECAY: Final = 0.1
_CLIP_NORM: Final = 1.0


@dataclass(frozen=True, slots=True)
class Batch:
    """The form of a batch: so many rows of so many tokens, and how the text is cut for them."""

    rows: int
    context_tokens: int
    cut: Cut


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights, besides the text and the number of threads."""

    steps: int
    short: Batch
    long: Batch
    # Every so many steps a long batch: enough to hold at far positions, and attention makes it twice as dear.
    steps_per_long: int
    # One made-up tool conversation per so many speeches.
    speeches_per_tool_document: int
    seed: int = 7
    matrix_learning_rate: float = 0.03
    other_learning_rate: float = 0.008
    warmup_steps: int = 20
    dropout: float = 0.1
    threads: int = 2


DEMO_RECIPE: Final = Recipe(
    steps=640,
    short=Batch(rows=8, context_tokens=512, cut=SHORT_CUT),
    long=Batch(rows=1, context_tokens=MAX_POSITIONS, cut=LONG_CUT),
    steps_per_long=8,
    speeches_per_tool_document=40,
)


class TokenStream:
    """Endless batches of packed documents, newly cut and shuffled on every pass over the text."""

    def __init__(self, tokenizer: Any, speeches: Sequence[Speech], rng: random.Random) -> None:
        self._tokenizer = tokenizer
        self._speeches = speeches
        self._rng = rng

    def batches(self, form: Batch, speeches_per_tool_document: int) -> Iterator[torch.Tensor]:
        """Yield token ids, (rows, context_tokens); documents run on across rows."""
        size = form.rows * form.context_tokens
        pending: list[int] = []
        while True:
            for document in self._one_pass(form.cut, speeches_per_tool_document):
                pending.extend(document)
                while len(pending) >= size:
                    yield torch.tensor(pending[:size]).view(form.rows, form.context_tokens)
                    del pending[:size]

    def _one_pass(self, cut: Cut, speeches_per_tool_document: int) -> list[list[int]]:
        documents = list(cut_documents(self._speeches, cut, self._rng))
        num_tool_documents = len(self._speeches) // speeches_per_tool_document
        documents += tool_documents(self._speeches, num_tool_documents, self._rng)
        self._rng.shuffle(documents)
        return [encode_document(self._tokenizer, document) for document in documents]


def encode_document(tokenizer: Any, document: Document) -> list[int]:
    """Return the token ids of a document as the model will meet it when served."""
    if document.text is not None:
        rendered = f"{BEGIN}{document.text}{END}"
    else:
        rendered = tokenizer.apply_chat_template(
            list(document.messages), tools=list(document.tools) or None, tokenize=False
        )
    return list(tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"])


def train_demo_model(folder: Path, recipe: Recipe = DEMO_RECIPE) -> float:
    """Train the demonstration model and write its folder; return the validation loss in nats per token.

    The same recipe gives the same weights on the same processor and torch. Raises OSError if `folder` cannot
    be written.
    """
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    text = read_corpus()
    save_tokenizer(train_tokenizer(text), folder)
    write_config(folder, DEMO_SHAPE, DEMO_SAMPLING)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    training, validation = split_speeches(parse_speeches(text), _VALIDATION_SHARE)
    model = build_model(DEMO_SHAPE, recipe.dropout)
    stream = TokenStream(tokenizer, training, random.Random(recipe.seed))
    held_out = _validation_rows(tokenizer, validation, recipe.short.context_tokens)
    _run(model, stream, held_out, recipe)
    return _save_weights(model, held_out, folder)


def build_model(shape: LlamaShape, dropout: float) -> Any:
    """Return a LlamaForCausalLM of `shape` in float32, with dropout on what each block adds."""
    config = LlamaConfig(**{key: value for key, value in shape.config().items() if key != "dtype"})
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        # Llama has no such dropout of its own. It matters here: many passes over one megabyte of text.
        for part in (layer.self_attn.o_proj, layer.mlp):
            part.register_forward_hook(
                lambda module, _, output: torch.nn.functional.dropout(output, dropout, module.training)
            )
    return model


def _run(model: Any, stream: TokenStream, held_out: torch.Tensor, recipe: Recipe) -> None:
    optimizers = _optimizers(model, recipe)
    short = stream.batches(recipe.short, recipe.speeches_per_tool_document)
    long = stream.batches(recipe.long, recipe.speeches_per_tool_document)
    started_s = time.monotonic()
    for step in range(1, recipe.steps + 1):
        rows = next(short if step % recipe.steps_per_long else long)
        loss = _train_step(model, optimizers, rows, _rate(step, recipe))
        if step % 20 == 0:
            elapsed_s = time.monotonic() - started_s
            logger.info("step %d/%d  loss %.3f  %.0f s", step, recipe.steps, loss, elapsed_s)
        if step % 100 == 0:
            logger.info("validation loss %.3f", validation_loss(model, held_out))


def _optimizers(model: Any, recipe: Recipe) -> tuple[torch.optim.Optimizer, ...]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed_tokens" in name]
    # Muon, since minutes count: after 60 steps from the start AdamW stood at 6.0 nats per token, Muon at 5.0.
    muon = torch.optim.Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=_WEIGHT_DECAY)
    adam = torch.optim.AdamW(others, lr=recipe.other_learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
    return muon, adam


def _rate(step: int, recipe: Recipe) -> float:
    """Return the share of the full learning rate at `step`: linear warm-up, then linear to zero."""
    if step < recipe.warmup_steps:
        return step / recipe.warmup_steps
    return (recipe.steps - step + 1) / (recipe.steps - recipe.warmup_steps + 1)


def _train_step(model: Any, optimizers: Sequence[torch.optim.Optimizer], rows: torch.Tensor, rate: float) -> float:
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * rate
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def _validation_rows(tokenizer: Any, speeches: Sequence[Speech], context_tokens: int) -> torch.Tensor:
    rng = random.Random(0)
    ids = [i for document in cut_documents(speeches, SHORT_CUT, rng) for i in encode_document(tokenizer, document)]
    rows = len(ids) // context_tokens
    return torch.tensor(ids[: rows * context_tokens]).view(rows, context_tokens)


def validation_loss(model: Any, held_out: torch.Tensor) -> float:
    """Return the mean loss, in nats per token, over rows of token ids that training never saw."""
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [
            float(model(input_ids=rows, labels=rows, use_cache=False).loss) * len(rows) for rows in held_out.split(8)
        ]
    return sum(losses) / len(held_out)


def _save_weights(model: Any, held_out: torch.Tensor, folder: Path) -> float:
    """Round the weights to bfloat16 as they will be served, write them, and return their validation loss."""
    model.to(torch.bfloat16).float()
    weights = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    file = folder / "model.safetensors"
    save_file(weights, str(file), metadata={"format": "pt"})
    file.chmod(0o644)
    return validation_loss(model, held_out)
