"""What is remembered on disk, so that slow work is done once: small files, found by a hash.

An entry's name holds the hash of what it was made from and the hash of what it holds, so damage
is seen. Nothing here is a reason to fail: a damaged entry counts as none, and a folder that cannot
be written stays empty.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Contexts of 512 tokens of width 4096 in half precision are 4 MB each; most prompts are short.
MAX_CONTEXTS = 100
_ABANDONED = 3600.0  # seconds, after which nobody writes a draft any more


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Entries of one kind in one folder.

    suffix: of the entries' names, `.json`.
    limit: how many are kept; beyond it the tenth that was used longest ago is forgotten.
    """

    folder: Path
    suffix: str
    limit: int

    def recall(self, *facts: object) -> bytes | None:
        """What was remembered for these facts, or None."""
        with contextlib.suppress(OSError):
            for path in self.folder.glob(f"{_key(facts)}-*{self.suffix}"):
                content = path.read_bytes()
                if path.stem.endswith(_digest(content)):
                    with contextlib.suppress(OSError):
                        os.utime(path)  # used just now, so not the next to be forgotten
                    return content
        return None

    def remember(self, content: bytes, *facts: object) -> None:
        """Keep the content under facts that JSON can hold: all that it was made from."""
        path = self.folder / f"{_key(facts)}-{_digest(content)}{self.suffix}"
        temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(content)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        for path in self.folder.glob("*.tmp"):  # of a process that was killed
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink(missing_ok=True)
        paths = list(self.folder.glob(f"*{self.suffix}"))
        if len(paths) > self.limit:
            paths.sort(key=lambda path: path.stat().st_mtime_ns)
            for path in paths[: len(paths) - self.limit * 9 // 10]:
                path.unlink(missing_ok=True)


def weights_facts(folder: Path) -> list[list[object]]:
    """What tells two sets of weights apart: small files by content, large ones by size and date.

    Raises:
        OSError: the folder cannot be read.
    """
    rows: list[list[object]] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
        if path.suffix in (".json", ".jinja", ".txt"):
            rows.append([path.name, hashlib.sha256(path.read_bytes()).hexdigest()])
        elif path.suffix in (".safetensors", ".pth", ".gguf", ".model"):
            facts = path.stat()
            rows.append([path.name, facts.st_size, facts.st_mtime_ns])
    return rows


def _key(facts: tuple[object, ...]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:40]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


# ---------------------------------------------------------------------- text embeddings


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """One text as the transformer reads it.

    rows: [L, D], without the zeros that follow.
    tokens: how many the text has, counted up to one more than the model reads.
    """

    rows: Tensor
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextMemory:
    """Contexts that one model's text encoder made on this machine, bit for bit."""

    memory: Memory
    facts: tuple[object, ...]  # whatever may change a bit, besides the text

    def recall(self, text: str) -> Context | None:
        """The context of a cleaned text, on the CPU, or None."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        content = self.memory.recall(text, *self.facts)
        if content is None:
            return None
        try:
            tensors = load(content)
            return Context(rows=tensors["context"], tokens=int(tensors["tokens"]))
        except (SafetensorError, KeyError):
            return None

    def remember(self, text: str, context: Context) -> None:
        """Keep the context of a cleaned text."""
        import torch
        from safetensors.torch import save

        rows = context.rows.cpu().contiguous()
        content = save({"context": rows, "tokens": torch.tensor(context.tokens)})
        self.memory.remember(content, text, *self.facts)


def context_memory(
    cache_dir: Path,
    parts: Mapping[str, Path],
    text_len: int,
    dtype: torch.dtype,
    device: torch.device,
) -> ContextMemory | None:
    """The memory of one model's text encoder, in `text/`; None where the model cannot be read.

    Its key: weights, tokenizer, length, dtype, device, threads, versions of torch and of this
    package.
    """
    import torch

    try:
        weights = [weights_facts(parts[part]) for part in ("text_encoder", "tokenizer")]
    except OSError:
        return None
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return ContextMemory(
        memory=Memory(folder=cache_dir / "text", suffix=".safetensors", limit=MAX_CONTEXTS),
        facts=(
            *(text_len, str(dtype), str(device), chip, torch.get_num_threads()),
            *(torch.__version__, version("sora-cli"), *weights),
        ),
    )
