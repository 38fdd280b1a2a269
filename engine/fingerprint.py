"""Digests of a model folder, its tokenizer and its adapters.

Owns what "the same model" means for KV hand-over. Reads files only; must not import vLLM.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)
# Head and tail of a weight file: the safetensors header with all shapes, and the last tensor. Reading tens of GB would
# cost minutes; equal names, sizes, headers and tails of unlike weights are left to the operator.
_PROBE_BYTES = 1 << 20
_DIGEST_CHARS = 16


def model_digest(folder: Path) -> str:
    """Digest config.json and name, size, first and last MiB of each weight file in `folder`."""
    digest = hashlib.sha256()
    _add_file(digest, folder / "config.json")
    for file in sorted({f for pattern in _WEIGHTS for f in folder.glob(pattern)}):
        _add_probe(digest, file)
    return digest.hexdigest()[:_DIGEST_CHARS]


def tokenizer_digest(folder: Path, chat_template: str = "") -> str:
    """Digest the tokenizer files of `folder` and the chat template given beside them."""
    digest = hashlib.sha256()
    for name in _TOKENIZER:
        _add_file(digest, folder / name)
    template = Path(chat_template)
    is_file = "\n" not in chat_template and len(chat_template) < 4096 and template.is_file()
    _add(digest, "chat_template", template.read_bytes() if is_file else chat_template.encode())
    return digest.hexdigest()[:_DIGEST_CHARS]


def adapters_digest(adapters: Sequence[tuple[str, str]]) -> str:
    """Digest names and files of LoRA adapters (name, folder); empty when there are none. Their order counts not."""
    if not adapters:
        return ""
    digest = hashlib.sha256()
    for name, path in sorted(adapters):
        _add(digest, "adapter", name.encode())
        folder = Path(path)
        _add_file(digest, folder / "adapter_config.json")
        for file in sorted({f for pattern in _WEIGHTS for f in folder.glob(pattern)}):
            _add_probe(digest, file)
    return digest.hexdigest()[:_DIGEST_CHARS]


def combined_digest(parts: Iterable[str | int]) -> str:
    """Digest a sequence of values; the order counts."""
    digest = hashlib.sha256()
    for part in parts:
        _add(digest, "part", str(part).encode())
    return digest.hexdigest()[:_DIGEST_CHARS]


def _add(digest: hashlib._Hash, name: str, data: bytes) -> None:
    digest.update(f"{len(name)}:{name}:{len(data)}:".encode())
    digest.update(data)


def _add_file(digest: hashlib._Hash, file: Path) -> None:
    if file.is_file():
        _add(digest, file.name, file.read_bytes())


def _add_probe(digest: hashlib._Hash, file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(_PROBE_BYTES)
        stream.seek(max(size - _PROBE_BYTES, 0))
        tail = stream.read(_PROBE_BYTES)
    _add(digest, f"{file.name}:{size}", head)
    _add(digest, "tail", tail)
