"""The tokenizer of the demonstration model: byte-level BPE, its special tokens and its chat template.

Owns the vocabulary and the tokenizer files of a model folder. It must not know what model uses them.
"""

import gzip
import json
import shutil
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CHECKOUT: Final = Path(__file__).resolve().parents[2]
DEMO_MODEL_DIR: Final = CHECKOUT / "deploy" / "models" / "baton-demo"
CORPUS_FILE: Final = Path(__file__).with_name("data") / "shakespeare.txt.gz"
CHAT_TEMPLATE_FILE: Final = Path(__file__).with_name("chat_template.jinja")

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
SYSTEM, USER, ASSISTANT, TOOL = "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"
# Ids 0 to 6, in this order. END closes a turn and a text alike, so it is the one end-of-sequence token.
SPECIAL_TOKENS: Final = (PAD, BEGIN, END, SYSTEM, USER, ASSISTANT, TOOL)
# The last ids. Not "special": a server that drops special tokens must still let a tool parser see them.
TOOL_CALL_TOKENS: Final = ("<tool_call>", "</tool_call>")
PAD_ID, BEGIN_ID, END_ID = 0, 1, 2
VOCAB_SIZE: Final = 2048
MAX_POSITIONS: Final = 4096
TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json")


def read_corpus() -> str:
    """Return the whole training text."""
    return gzip.decompress(CORPUS_FILE.read_bytes()).decode("utf-8")


def train_tokenizer(text: str) -> Tokenizer:
    """Train the byte-level BPE vocabulary of `VOCAB_SIZE` entries; equal texts give equal tokenizers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(TOOL_CALL_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in TOOL_CALL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, BEGIN_ID)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json (with the chat template) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITIONS,
        "chat_template": CHAT_TEMPLATE_FILE.read_text(encoding="utf-8"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path = DEMO_MODEL_DIR) -> Tokenizer:
    """Read the tokenizer of a model folder made here."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def copy_tokenizer(folder: Path, *, max_positions: int) -> None:
    """Copy the demonstration model's tokenizer files into `folder`, for a model of `max_positions` tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(DEMO_MODEL_DIR / name, folder / name)
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["model_max_length"] = max_positions
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
