"""THE path: prompt → context → canvas → latents → frames, for every verb and every model.

Each network lives only while it is needed: the text encoder is gone before the transformer
comes, and the transformer before the decoder, unless another video follows. Shapes: B batch,
L tokens, D width, (C, T, H, W) latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sora_cli.models.dit import DiT
from sora_cli.models.specs import ModelSpec
from sora_cli.models.text_encoder import TextEncoder, Tokenizer
from sora_cli.models.vae import VAE
from sora_cli.pipeline.canvas import (
    Canvas,
    Conditioning,
    latents_shape,
    lay_out,
    noise,
)
from sora_cli.pipeline.events import Event, Observer, ignore
from sora_cli.pipeline.prompt import clean_text
from sora_cli.pipeline.remember import Context, context_memory
from sora_cli.pipeline.request import Settings
from sora_cli.pipeline.sampler import Guidance, denoise, make_schedule
from sora_cli.weights import load

# Latents (batch × grid) up to which both halves of guidance go through the network in one call:
# beyond it a second batch of activations costs memory and saves no time.
BATCHED_GUIDANCE_TOKENS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One job for the path: what to make, with which weights, where, out of which given frames.

    prompt: as the text encoder gets it, after expansion. seeds: one video for each.
    first_frame: [H, W, 3] uint8 at the settings' size, or None.
    cache_dir: where contexts are remembered; None remembers nothing.
    """

    settings: Settings
    spec: ModelSpec
    folder: Path
    device: torch.device
    dtype: torch.dtype
    prompt: str
    seeds: tuple[int, ...]
    first_frame: np.ndarray | None = None
    cache_dir: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """One video: its seed, its latents, and its frames as they are decoded."""

    seed: int
    latents: Tensor  # [1, C, T, H, W] fp32
    frames: Iterator[np.ndarray]  # uint8 [t, H, W, 3]


def generate(order: Order, observer: Observer = ignore) -> Iterator[Made]:
    """Make one video per seed. Take a video's frames before asking for the next video."""
    context, negative = _contexts(order, observer)
    canvas = _canvas(order, observer)
    with ExitStack() as resident:
        observer(Event(phase="load"))
        dit = resident.enter_context(load.dit(order.folder, device=order.device, dtype=order.dtype))
        for seed in order.seeds:
            start = noise(canvas.latents_shape, seed).to(order.device)
            latents = make_latents(
                dit, context, negative, canvas, start, order.settings, observer=observer
            )
            if seed == order.seeds[-1]:
                del dit
                resident.close()  # its memory is the decoder's now
            with load.vae(order.folder, device=order.device, dtype=_vae_dtype(order)) as vae:
                yield Made(seed=seed, latents=latents.cpu(), frames=_frames(vae, latents, observer))


@torch.no_grad()
def make_latents(
    dit: DiT,
    context: Tensor,
    negative: Tensor | None,
    canvas: Canvas,
    noise: Tensor,
    settings: Settings,
    observer: Observer | None = None,
) -> Tensor:
    """Denoise a batch of canvases of one layout.

    Args:
        context, negative: [B, text_len, D]; negative is None only at guidance scale 1.
        canvas: what is given, the same for the whole batch.
        noise: [B, C, T, H, W] fp32 on the transformer's device.

    Returns:
        normalised latents [B, C, T, H, W] fp32.
    """
    observer = observer or ignore
    observer(Event(phase="denoise", total=settings.num_inference_steps))
    schedule = make_schedule(
        settings.num_inference_steps,
        settings.shift,
        sampler=settings.sampler,
        grid=settings.sigma_grid,
    )
    return denoise(
        dit,
        noise,
        canvas.to(noise.device),
        schedule,
        sampler=settings.sampler,
        guidance=_guidance(dit, context, negative, noise, settings.guidance_scale),
        observer=observer,
    )


def _guidance(
    dit: DiT, context: Tensor, negative: Tensor | None, noise: Tensor, scale: float
) -> Guidance:
    """The texts as the blocks read them: one double batch while memory allows, else two."""
    context = context.to(noise.device)
    if scale == 1 or negative is None:
        return Guidance(context=dit.prepare_context(context))
    negative = negative.to(noise.device)
    if noise[:, 0].numel() <= BATCHED_GUIDANCE_TOKENS:
        both = dit.prepare_context(torch.cat([context, negative]))
        return Guidance(context=None, batched_context=both, scale=scale)
    texts = (dit.prepare_context(text) for text in (context, negative))
    return Guidance(context=next(texts), negative_context=next(texts), scale=scale)


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


def _contexts(order: Order, observer: Observer) -> tuple[Tensor, Tensor | None]:
    """Context of the prompt and, where guidance needs it, of the negative prompt."""
    observer(Event(phase="encode"))
    prompts = [order.prompt]
    if order.settings.guidance_scale != 1:
        prompts.append(order.settings.negative_prompt)
    text_len, cache = order.spec.text_len, order.cache_dir
    memory = cache and context_memory(cache, order.folder, text_len, order.dtype, order.device)
    contexts: dict[str, Context] = {}
    for prompt in prompts:
        if memory and (remembered := memory.recall(clean_text(prompt))):
            contexts[prompt] = remembered
    missing = [prompt for prompt in prompts if prompt not in contexts]
    for prompt, context in zip(missing, _encode_prompts(order, missing), strict=True):
        contexts[prompt] = context
        if memory:
            memory.remember(clean_text(prompt), context)
    if contexts[order.prompt].tokens > text_len:
        message = f"the prompt is longer than the {text_len} tokens the model reads"
        observer(Event(phase="note", message=f"{message}; the rest is cut"))
    rows = [contexts[prompt].rows for prompt in prompts]
    padded = [F.pad(states, (0, 0, 0, text_len - len(states)))[None] for states in rows]
    return padded[0], padded[1] if len(padded) > 1 else None  # [1, text_len, D]


def _encode_prompts(order: Order, prompts: list[str]) -> list[Context]:
    """What is not remembered; the text encoder is loaded only when there is any."""
    if not prompts:
        return []
    text_len = order.spec.text_len
    tokenizer = load.tokenizer(order.folder)
    contexts = []
    with load.text_encoder(order.folder, device=order.device, dtype=order.dtype) as encoder:
        # One by one: a batch's padding would change the last bits of the shorter prompt.
        for prompt in prompts:
            _, mask = tokenizer.encode([clean_text(prompt)], text_len + 1)
            tokens = int(mask.sum())
            rows = encode_text(tokenizer, encoder, [prompt], text_len)[0, :tokens]  # [L, D]
            contexts.append(Context(rows=rows, tokens=tokens))
    return contexts


def _canvas(order: Order, observer: Observer) -> Canvas:
    """The canvas, with the first frame on it where one is given."""
    settings, spec = order.settings, order.spec
    channels = load.latent_channels(order.folder)
    shape = latents_shape(
        channels=channels, num_frames=settings.num_frames, height=settings.height,
        width=settings.width, scale_factors=spec.vae_scale_factors,
    )  # fmt: skip
    if order.first_frame is None:
        return Canvas.blank(shape)
    assert spec.conditioning == "tokens", f"{spec.name} cannot start from a picture"
    observer(Event(phase="encode"))
    video = torch.from_numpy(order.first_frame.copy()).float() / 127.5 - 1  # [H, W, 3]
    video = video.permute(2, 0, 1)[None, :, None].to(order.device)  # [1, 3, 1, H, W]
    # Encoding is always fp32: half precision there shows as a wrong colour in every frame.
    with load.vae(order.folder, device=order.device, dtype=torch.float32) as vae:
        row = Conditioning(frames=video, index=0)
        return lay_out(vae.encode, shape, [row], spec.vae_scale_factors[0])


def _frames(vae: VAE, latents: Tensor, observer: Observer) -> Iterator[np.ndarray]:
    """Decoded frames, uint8 [t, H, W, 3], a latent frame at a time."""
    total = latents.shape[2]
    dtype = next(vae.parameters()).dtype
    observer(Event(phase="decode", total=total))
    for step, chunk in enumerate(vae.decode_stream(latents.to(dtype)), start=1):
        frames = ((chunk[0].float() / 2 + 0.5) * 255).round().to(torch.uint8)  # [3, t, H, W]
        observer(Event(phase="decode", step=step, total=total))
        yield frames.permute(1, 2, 3, 0).cpu().numpy()


def _vae_dtype(order: Order) -> torch.dtype:
    """The decoder runs in fp32 on the CPU, where that is exact, else as the transformer does."""
    return torch.float32 if order.device.type == "cpu" else order.dtype
