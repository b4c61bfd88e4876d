"""Making the clips to be judged: in batches, each kept on disk as latents as soon as it is made.

The path is the pipeline's own (`encode_text`, `make_latents`), so what is measured is what a user
gets. A crash or the end of a time box costs one batch: what is there is not made again.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor

from sora_cli.eval.sources import making_code
from sora_cli.eval.truth import Prompt
from sora_cli.models.vae import VAE
from sora_cli.pipeline.canvas import Canvas, encode_given, latents_shape, noise
from sora_cli.pipeline.generate import Texts, make_latents
from sora_cli.pipeline.networks import encode_text
from sora_cli.pipeline.request import Request, Settings, resolve
from sora_cli.train.dataset import to_video
from sora_cli.weights import load
from sora_cli.weights.store import Installed

BATCH = 8  # clips generated together


@dataclass(frozen=True, kw_only=True, slots=True)
class Studio:
    """Where and with what clips are made."""

    model: Installed
    device: torch.device
    dtype: torch.dtype
    work: Path  # of the latents made so far
    deadline: float  # time.monotonic() after which nothing new is begun
    say: Callable[[str], object]
    changes: Mapping[str, Any] = field(default_factory=dict)  # to the default settings

    def settings(self, prompt: Prompt) -> Settings:
        """What a clip is made with: the model's defaults, with the studio's own changes."""
        return replace(settings_of(self.model, prompt), **self.changes)


def request_of(model: Installed, prompt: Prompt) -> Request:
    """A prompt as a user asks for it, at its scene's size and length; never expanded."""
    scene = prompt.scene
    return Request(
        prompt=prompt.caption.text, model=str(model.folder), width=scene.width,
        height=scene.height, num_frames=scene.num_frames, fps=scene.fps, seed=prompt.seed,
        expand=False,
    )  # fmt: skip


def settings_of(model: Installed, prompt: Prompt) -> Settings:
    """The model's default settings for a prompt, as a user gets them."""
    return resolve(request_of(model, prompt), model.spec)[0]


def content_hash(folder: Path) -> str:
    """SHA-256 of every weight, config and vocabulary file of a model's generating parts."""
    digest = hashlib.sha256()
    for part in ("scheduler", "text_encoder", "tokenizer", "transformer", "vae"):
        for path in sorted((folder / part).glob("*")):
            if path.suffix in (".safetensors", ".json"):
                digest.update(f"{part}/{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def keep(
    studio: Studio, what: str, build: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray] | None:
    """What `build` makes, once: from the work folder where it lies there already.

    Args:
        what: everything that it depends on beside the weights, the code that makes clips and the
            dtype, in words.

    Returns:
        the arrays by name, or None where they are not there and the time box is over.
    """
    assert studio.model.folder is not None, "a model is examined as a folder"
    words = f"{content_hash(studio.model.folder)} {making_code()} {studio.dtype} {what}"
    file = studio.work / f"{hashlib.sha256(words.encode()).hexdigest()[:32]}.safetensors"
    if not file.is_file():
        if time.monotonic() > studio.deadline:
            return None
        arrays = {name: np.ascontiguousarray(array) for name, array in build().items()}
        save_arrays(arrays, file.with_suffix(".tmp"))
        os.replace(file.with_suffix(".tmp"), file)
    return dict(load_arrays(file))


def _file_names(studio: Studio, prompts: list[Prompt], given: Tensor | None) -> list[Path]:
    folder, names = studio.model.folder, []
    assert folder is not None, "a model is examined as a folder"
    maker = f"{content_hash(folder)} {making_code()}"
    for number, prompt in enumerate(prompts):
        what = f"{maker} {studio.settings(prompt)} {studio.dtype}"
        digest = hashlib.sha256(what.encode())
        if given is not None:
            digest.update(given[number].numpy().tobytes())
        names.append(studio.work / f"{digest.hexdigest()[:32]}.safetensors")
    return names


def make(studio: Studio, prompts: list[Prompt], given: Tensor | None = None) -> list[Tensor]:
    """Latents [C, T, H, W] of as many of the prompts, in order, as the time box allows.

    Args:
        given: first frames, uint8 [B, K, H, W, 3], where the clips go on from true ones; K is
            4(k - 1) + 1 for k latents.
    """
    return [one["latents"] for one in make_timed(studio, prompts, given)]


def make_timed(
    studio: Studio, prompts: list[Prompt], given: Tensor | None = None
) -> list[dict[str, Tensor]]:
    """As `make`, with what each clip cost when it was made: "latents" and "seconds" [1].

    The seconds are a clip's share of its batch, from text to latents, networks loaded.
    """
    studio.work.mkdir(parents=True, exist_ok=True)
    files = _file_names(studio, prompts, given)
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    # A canvas belongs to a whole batch, so clips with their own first frames go one by one.
    size = BATCH if given is None else 1
    if missing:
        for chosen in _batches(missing, size, studio):
            began, rows = time.monotonic(), [prompts[n] for n in chosen]
            frames = None if given is None else given[chosen[0]]
            batch = _make_batch(studio, rows, frames)
            seconds = torch.tensor([(time.monotonic() - began) / len(rows)])
            for number, latents in zip(chosen, batch, strict=True):
                temporary = files[number].with_suffix(".tmp")
                save_file({"latents": latents.contiguous(), "seconds": seconds}, temporary)
                os.replace(temporary, files[number])
    made = []
    for file in files:
        if not file.is_file():
            break
        made.append(load_file(file))
    return made


def _batches(missing: list[int], size: int, studio: Studio) -> Iterator[list[int]]:
    began = time.monotonic()
    for first in range(0, len(missing), size):
        if time.monotonic() > studio.deadline:
            studio.say(f"out of time with {len(missing) - first} clips to make\n")
            return
        yield missing[first : first + size]
        done = min(first + size, len(missing))
        studio.say(f"made {done}/{len(missing)} clips, {time.monotonic() - began:.0f} s\n")


def _make_batch(studio: Studio, prompts: list[Prompt], given: Tensor | None) -> Tensor:
    """[B, C, T, H, W] latents of one batch, after given frames [K, H, W, 3]."""
    model, device = studio.model, studio.device
    settings = studio.settings(prompts[0])
    texts = _texts(studio, settings, prompts)
    canvas = _canvas(studio, settings, given)
    seeds = [prompt.seed for prompt in prompts]
    start = torch.cat([noise(canvas.latents_shape, seed) for seed in seeds]).to(device)
    with load.dit(model.parts["transformer"], device=device, dtype=studio.dtype) as dit:
        return make_latents(dit, texts, canvas, start, settings).cpu()


def _texts(studio: Studio, settings: Settings, prompts: list[Prompt]) -> Texts:
    model = studio.model
    tokenizer = load.tokenizer(model.parts["tokenizer"])
    part = model.parts["text_encoder"]
    with load.text_encoder(part, device=studio.device, dtype=studio.dtype) as encoder:
        # One by one, as the pipeline does: padding would change the shorter prompts' last bits.
        texts = [p.caption.text for p in prompts]
        rows = [encode_text(tokenizer, encoder, [t], model.spec.text_len) for t in texts]
        context = torch.cat(rows)
        if settings.guidance_scale == 1:
            return Texts(context=context, negative=None)
        negative = encode_text(tokenizer, encoder, [settings.negative_prompt], model.spec.text_len)
    return Texts(context=context, negative=negative.expand_as(context))


def _canvas(studio: Studio, settings: Settings, given: Tensor | None) -> Canvas:
    model = studio.model
    shape = latents_shape(
        channels=load.latent_channels(model.parts["vae"]), num_frames=settings.num_frames,
        height=settings.height, width=settings.width, scale_factors=model.spec.vae_scale_factors,
    )  # fmt: skip
    canvas = Canvas.blank(shape)
    if given is None:
        return canvas
    part = model.parts["vae"]
    with load.vae(part, device=studio.device, dtype=torch.float32) as vae, torch.no_grad():
        video = to_video(given[None]).to(studio.device)  # [1, 3, K, H, W]
        return canvas.give(encode_given(vae.encode, video, "head")[0].cpu(), 0)


@torch.no_grad()
def decode(vae: VAE, latents: list[Tensor]) -> Tensor:
    """Latents [C, T, H, W] → uint8 [B, T, H, W, 3], as the pipeline rounds them."""
    device, videos = next(vae.parameters()).device, []
    for one in latents:
        video = vae.decode(one[None].to(device))[0]  # [3, T, H, W]
        frames = ((video / 2 + 0.5) * 255).round().to(torch.uint8).permute(1, 2, 3, 0)
        videos.append(frames.cpu())
    return torch.stack(videos)


@torch.no_grad()
def encode(vae: VAE, frames: Tensor) -> list[Tensor]:
    """uint8 [B, T, H, W, 3] → latents, one clip at a time."""
    device = next(vae.parameters()).device
    return [vae.encode(to_video(clip)[None].to(device))[0].cpu() for clip in frames]
