"""The networks of one job: loaded when they are first asked for, kept or let go by the plan.

Shapes: B batch, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sora_cli.models import fused
from sora_cli.models.dit import DiT
from sora_cli.models.specs import ModelSpec
from sora_cli.models.text_encoder import TextEncoder, Tokenizer
from sora_cli.models.vae import VAE
from sora_cli.pipeline.events import Event, Observer, ignore
from sora_cli.pipeline.prompt import clean_text
from sora_cli.pipeline.remember import Context, context_memory
from sora_cli.pipeline.request import Fp8Layers
from sora_cli.runtime.memory import return_large_blocks
from sora_cli.runtime.plan import MemoryPlan
from sora_cli.weights import load
from sora_cli.weights.lora import Lora

if TYPE_CHECKING:
    from sora_cli.models.image_encoder import ImageEncoder

N = TypeVar("N")
LARGE = (
    1_000_000_000  # bytes of a plan from which on the allocator is told not to keep what is freed
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model as a job uses it.

    parts: where each network's weights are, as `weights.store.Installed` has them.
    plan: how the networks share the memory.
    loras: changes to the transformers' weights, merged when they load.
    cache_dir: where contexts are remembered; None remembers nothing.
    fp8_matmul: layers of the transformers that multiply in 8 bits, as in `Settings`.
    compile: the transformers' blocks are compiled, unless they pass through the device.
    """

    spec: ModelSpec
    parts: Mapping[str, Path]
    device: torch.device
    dtype: torch.dtype
    plan: MemoryPlan
    loras: tuple[Lora, ...] = ()
    cache_dir: Path | None = None
    fp8_matmul: Fp8Layers | None = None
    compile: bool = False


class Networks:
    """The networks of a model, one at a time or all at once, as its plan says.

    Use as a context manager; every network is gone at its end. Asking for a network while another
    one of a plan that keeps only one is in use is a mistake: ask when the last block has ended.
    """

    def __init__(self, model: Model, observer: Observer = ignore) -> None:
        self.model, self.observer = model, observer
        self._kept: dict[str, tuple[Any, ExitStack]] = {}

    def __enter__(self) -> Networks:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let go of every network."""
        for name in list(self._kept):
            self._let_go(name)

    def _let_go(self, name: str) -> None:
        self._kept.pop(name)[1].close()

    def replan(self, plan: MemoryPlan) -> None:
        """Share the memory in another way from now on; every network is loaded again."""
        self.release()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()  # blocks of the sizes that did not fit
        self.model = replace(self.model, plan=plan)

    @contextmanager
    def transformer(self, part: str = "transformer") -> Iterator[DiT]:
        """The transformer, or of two experts the one for little noise (`transformer_2`)."""
        model = self.model
        expert = {"transformer": "high", "transformer_2": "low"}[part]
        loras = tuple(lora for lora in model.loras if lora.expert in ("both", expert))
        with self._use(
            part,
            lambda: load.dit(
                model.parts[part], device=model.device, dtype=model.dtype, loras=loras,
                storage=model.plan.storage, place=model.plan.placement,
                fp8_matmul=model.fp8_matmul, compile=model.compile,
            ),
        ) as dit:  # fmt: skip
            try:
                yield dit
            finally:
                for sentence in fused.take_notes():
                    self.observer(Event(phase="note", message=sentence))

    @contextmanager
    def vae(self, *, exact: bool) -> Iterator[VAE]:
        """The autoencoder; `exact` in fp32 whatever the model's dtype.

        Encoding is always exact: half precision there shows as a wrong colour in every frame.
        """
        model = self.model
        dtype = torch.float32 if exact else model.dtype
        with self._use(
            f"vae {dtype}", lambda: load.vae(model.parts["vae"], device=model.device, dtype=dtype)
        ) as vae:
            yield vae

    @contextmanager
    def image_encoder(self) -> Iterator[ImageEncoder]:
        """CLIP, for the families that look at given pictures through it."""
        model = self.model
        with self._use(
            "image_encoder",
            lambda: load.image_encoder(
                model.parts["image_encoder"], device=model.device, dtype=model.dtype
            ),
        ) as encoder:
            yield encoder

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return load.latent_channels(self.model.parts["vae"])

    def contexts(self, prompts: Sequence[str]) -> list[Tensor]:
        """Text embeddings of the prompts, [1, text_len, D] each, remembered on disk."""
        text_len = self.model.spec.text_len
        self.observer(Event(phase="encode"))
        memory = self.model.cache_dir and context_memory(
            self.model.cache_dir, self.model.parts, text_len, self.model.dtype, self.model.device
        )
        known: dict[str, Context] = {}
        for prompt in prompts:
            if memory and (remembered := memory.recall(clean_text(prompt))):
                known[prompt] = remembered
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        for prompt, context in zip(missing, self._encode(missing), strict=True):
            known[prompt] = context
            if memory:
                memory.remember(clean_text(prompt), context)
        if any(known[prompt].tokens > text_len for prompt in prompts):
            message = f"the prompt is longer than the {text_len} tokens the model reads"
            self.observer(Event(phase="note", message=f"{message}; the rest is cut"))
        rows = [known[prompt].rows for prompt in prompts]
        return [F.pad(states, (0, 0, 0, text_len - len(states)))[None] for states in rows]

    def _encode(self, prompts: Sequence[str]) -> list[Context]:
        """What is not remembered; the text encoder is loaded only when there is any."""
        if not prompts:
            return []
        model, text_len = self.model, self.model.spec.text_len
        tokenizer, contexts = load.tokenizer(model.parts["tokenizer"]), []
        device = torch.device("cpu") if model.plan.text_encoder_on == "cpu" else model.device
        with self._use(
            "text_encoder",
            lambda: load.text_encoder(
                model.parts["text_encoder"], device=device, dtype=model.dtype
            ),
        ) as encoder:
            self.observer(Event(phase="encode"))  # loading is over
            # One by one: a batch's padding would change the last bits of the shorter prompt.
            for prompt in prompts:
                _, mask = tokenizer.encode([clean_text(prompt)], text_len + 1)
                tokens = int(mask.sum())
                rows = encode_text(tokenizer, encoder, [prompt], text_len)[0, :tokens]  # [L, D]
                contexts.append(Context(rows=rows, tokens=tokens))
        if not model.plan.keep_text_encoder:
            self._let_go("text_encoder")
        return contexts

    @contextmanager
    def _use(self, name: str, open_: Callable[[], AbstractContextManager[N]]) -> Iterator[N]:
        if name not in self._kept:
            if not self.model.plan.keep:
                self.release()
            self.observer(Event(phase="load"))
            if self.model.device.type == "cpu" and self.model.plan.peak_bytes > LARGE:
                return_large_blocks()
            stack = ExitStack()
            self._kept[name] = (stack.enter_context(open_()), stack)
        yield self._kept[name][0]


def encode_text(
    tokenizer: Tokenizer, encoder: TextEncoder, prompts: list[str], text_len: int
) -> Tensor:
    """Prompts → context [B, text_len, D], zero beyond each prompt's end.

    The published transformers attend, unmasked, to all text_len rows, zeros included.
    """
    ids, mask = tokenizer.encode([clean_text(p) for p in prompts], text_len)
    device = next(encoder.parameters()).device
    longest = int(mask.sum(1).max())  # rows beyond it are zero anyway
    ids, mask = ids[:, :longest].to(device), mask[:, :longest].to(device)
    with torch.no_grad():
        states = encoder(ids, mask) * mask[..., None]  # [B, L, D]
    return F.pad(states, (0, 0, 0, text_len - longest))
