"""A case made runnable: the same weights and inputs on both sides, ours as a job uses it.

Theirs are called as diffusers' own pipelines call them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from sora_cli.bench import checkpoints, offload, theirs, ways, whole
from sora_cli.bench.cases import Case
from sora_cli.bench.goals import THEIRS_FP32
from sora_cli.bench.pairs import SEED, Pair, Place, draw, networks_of, part_of, weight_bytes
from sora_cli.models.compiled import compile_blocks
from sora_cli.models.dit import DiT
from sora_cli.models.vae import VAE
from sora_cli.pipeline import generate
from sora_cli.pipeline.request import Request, resolve
from sora_cli.weights import load, store

PROMPT = "a red ball rolls to the right on the grass by day"


@contextmanager
def prepared(case: Case, place: Place) -> Iterator[Pair]:
    """Write what the case reads, open both sides; everything is gone at the end."""
    with KINDS[case.kind](case, place) as pair:
        yield pair


@contextmanager
def _step(case: Case, place: Place) -> Iterator[Pair]:
    """A call of the transformer on every text of a step.

    Ours reads contexts prepared once, as in a job, and takes both rows at once while they are
    small. Theirs has the same rows in as many calls.
    """
    part = part_of(
        case, place, "transformer",
        lambda folder: checkpoints.write_transformer(folder, case.transformer, place.dtype),
    )  # fmt: skip
    config, rows = case.transformer, case.rows
    latents = draw(place, 1, config.in_channels, *case.latent_size)
    contexts = draw(place, rows, config.text_len, config.text_dim)
    timesteps = torch.full((1,), 500.0, device=place.device)
    batch = rows if latents[:, 0].numel() <= generate.BATCHED_GUIDANCE_TOKENS else 1
    with networks_of(case, place, {"transformer": part}) as networks, networks.transformer() as dit:
        caches = [dit.prepare_context(part) for part in contexts.split(batch)]
        wide = latents.expand(batch, -1, -1, -1, -1)

        def ours() -> Tensor:
            return torch.cat([dit(wide, timesteps.expand(batch), cache) for cache in caches])

        mine: dict[str, Any] = {
            "ours": ours, "ours_weights": weight_bytes(dit), "batch": batch,
            "ours_compiled": lambda: compile_blocks(dit),
        }  # fmt: skip
        others: dict[str, Callable[[], object]] = {}
        if place.device.type == "cuda":
            others["without kernels"] = partial(ways.without_kernels, ours)
        if case.fp8:
            others["feed-forward in 8 bits"] = ways.in_fp8(dit, ours)
        mine["variants"] = others
        if not theirs.available():
            yield Pair(theirs=None, missing=theirs.MISSING, **mine)
            return
        other = theirs.transformer(part, place.device, place.dtype)
        grid = math.prod(n // p for n, p in zip(case.latent_size, config.patch_size, strict=True))
        given = timesteps.expand(batch)
        if case.per_token:
            given = given[:, None].expand(batch, grid)

        def call() -> Tensor:
            rounds = [
                other(
                    hidden_states=wide.to(place.dtype), timestep=given,
                    encoder_hidden_states=context.to(place.dtype), return_dict=False,
                )[0]
                for context in contexts.split(batch)
            ]  # fmt: skip
            return torch.cat(rounds)

        yield Pair(
            theirs=call, theirs_weights=weight_bytes(other),
            compiled=lambda: theirs.compile_blocks(other), **mine,
        )  # fmt: skip


@contextmanager
def _offload(case: Case, place: Place) -> Iterator[Pair]:
    """A step whose blocks all come from host memory, beside the same with all on the device."""
    there = offload.build(case, place.device, place.dtype)
    dit = deepcopy(there)

    def step(network: DiT) -> Callable[[], Tensor]:
        call = offload.call_of(case, network, place.device, place.dtype)
        return lambda: torch.cat([call() for _ in range(case.rows)])

    with offload.passing(dit, 0, place.device) as stream:
        assert stream is not None
        slots = 2 * stream.block_bytes - sum(map(weight_bytes, dit.blocks))
        yield Pair(
            ours=step(dit), theirs=step(there), ours_weights=weight_bytes(dit) + slots,
            theirs_weights=weight_bytes(there),
        )  # fmt: skip


@contextmanager
def _autoencoder(case: Case, place: Place) -> Iterator[tuple[VAE, Any]]:
    """Ours as a job has it, and theirs."""
    part = part_of(
        case, place, "vae", lambda folder: checkpoints.write_vae(folder, case.vae, place.dtype)
    )
    exact = place.dtype == torch.float32
    with networks_of(case, place, {"vae": part}) as networks, networks.vae(exact=exact) as vae:
        # On a CPU a job's autoencoder may be fp32 whatever is asked for.
        vae = vae.to(place.dtype)
        other = theirs.vae(part, place.device, place.dtype) if theirs.available() else None
        yield vae, other


@contextmanager
def _decode(case: Case, place: Place) -> Iterator[Pair]:
    """Latents at unit scale to a clip in [-1, 1]; ours by the stream that a job decodes with."""
    with _autoencoder(case, place) as (vae, other):
        latents = draw(place, 1, case.vae.z_dim, *case.latent_size).to(place.dtype)

        def ours() -> Tensor:
            shape = (1, 3, case.num_frames, case.height, case.width)
            video, at = torch.empty(shape, dtype=place.dtype, device=place.device), 0
            for chunk in vae.decode_stream(latents):
                video[:, :, at : at + chunk.shape[2]] = chunk
                at += chunk.shape[2]
            return video

        def call() -> Tensor:
            return other.decode(vae.denormalize(latents), return_dict=False)[0]

        pair = _autoencoder_pair(vae, other, ours, call)
        if other is not None and any(goal.kind == "fp32" for goal in case.goals):

            def exact() -> Tensor:  # as diffusers' pages say to load it; the last call of theirs
                other.float()
                return other.decode(vae.denormalize(latents).float(), return_dict=False)[0]

            pair = replace(pair, variants={THEIRS_FP32: exact})
        if place.device.type == "cuda":

            def channels_first() -> Tensor:  # the last call of ours
                for parameter in vae.parameters():
                    parameter.data = parameter.data.contiguous()
                return ours()

            pair = replace(pair, variants={**pair.variants, "channels first": channels_first})
        yield pair


@contextmanager
def _encode(case: Case, place: Place) -> Iterator[Pair]:
    """A clip in [-1, 1] to latents at unit scale."""
    with _autoencoder(case, place) as (vae, other):
        size = (1, 3, case.num_frames, case.height, case.width)
        video = draw(place, *size).tanh().to(place.dtype)

        def call() -> Tensor:
            return vae.normalize(other.encode(video).latent_dist.mode())

        yield _autoencoder_pair(vae, other, lambda: vae.encode(video), call)


def _autoencoder_pair(
    vae: VAE, other: Any, ours: Callable[[], Tensor], call: Callable[[], Tensor]
) -> Pair:
    if other is None:
        missing, weights = theirs.MISSING, weight_bytes(vae)
        return Pair(ours=ours, theirs=None, missing=missing, ours_weights=weights)
    return Pair(
        ours=ours, theirs=call, ours_weights=weight_bytes(vae), theirs_weights=weight_bytes(other)
    )


@contextmanager
def _text(case: Case, place: Place) -> Iterator[Pair]:
    """Prompts of full length through the text encoder, one by one as a job encodes them."""
    part = part_of(
        case, place, "text_encoder",
        lambda folder: checkpoints.write_text_encoder(folder, case.text, place.dtype),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(SEED)
    size = (case.rows, case.transformer.text_len)
    ids = torch.randint(2, case.text.vocab_size, size, generator=generator).to(place.device)
    mask = torch.ones_like(ids)
    with load.text_encoder(part, device=place.device, dtype=place.dtype) as encoder:

        def ours() -> Tensor:
            return torch.cat([encoder(row, mask[:1]) for row in ids.split(1)])

        weights = weight_bytes(encoder)
        if not theirs.available():  # transformers alone is no pipeline's text encoder
            yield Pair(ours=ours, theirs=None, missing=theirs.MISSING, ours_weights=weights)
            return
        other = theirs.text_encoder(part, place.device, place.dtype)

        yield Pair(
            ours=ours, theirs=lambda: other(ids, mask).last_hidden_state, ours_weights=weights,
            theirs_weights=weight_bytes(other),
        )  # fmt: skip


@contextmanager
def _pipeline(case: Case, place: Place) -> Iterator[Pair]:
    """A prompt to 8-bit frames, every network loaded: texts, denoising, decoding."""
    installed = store.locate("tiny")
    assert case.embedded and installed.folder is not None
    request = Request(
        prompt=PROMPT, width=case.width, height=case.height, num_frames=case.num_frames, seed=SEED,
        num_inference_steps=case.steps,
    )  # fmt: skip
    settings, _ = resolve(request, installed.spec)
    with networks_of(case, place, installed.parts) as networks:

        def ours() -> Tensor:
            texts = generate.read_texts(networks, settings.prompt, settings)
            canvas = generate.lay_canvas(networks, settings)
            latents = generate.make_video_latents(networks, texts, canvas, settings, SEED)
            frames = np.concatenate(list(generate.decode_frames(networks, latents)))
            return torch.from_numpy(frames)  # uint8 [T, H, W, 3]

        ours()  # loads them
        with networks.vae(exact=False) as vae, networks.transformer() as dit:
            vae_dtype = next(vae.parameters()).dtype
            weights = weight_bytes(vae) + weight_bytes(dit)
        weights += case.shapes.text_encoder.parameters * place.dtype.itemsize
        fractions = _as_fractions(ours)
        if not theirs.available():
            yield Pair(ours=fractions, theirs=None, missing=theirs.MISSING, ours_weights=weights)
            return
        other = theirs.pipeline(installed.folder, place.device, place.dtype, vae_dtype)

        def call() -> Tensor:
            made = other(
                prompt=settings.prompt, negative_prompt=settings.negative_prompt,
                width=case.width, height=case.height, num_frames=case.num_frames,
                num_inference_steps=case.steps, guidance_scale=settings.guidance_scale,
                generator=torch.Generator().manual_seed(SEED), output_type="np",
                max_sequence_length=installed.spec.text_len,
            )  # fmt: skip
            return torch.from_numpy(made.frames[0])

        parts = (other.vae, other.transformer, other.text_encoder)
        yield Pair(
            ours=fractions, theirs=call, ours_weights=weights,
            theirs_weights=sum(map(weight_bytes, parts)),
            compiled=lambda: theirs.compile_blocks(other.transformer),
        )  # fmt: skip


def _as_fractions(frames: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The frames from 0 to 1, as theirs are; the division is part of nobody's work."""
    return lambda: frames() / 255


@contextmanager
def _load(case: Case, place: Place) -> Iterator[Pair]:
    """A transformer from its file, in the page cache, to the device."""
    folder = checkpoints.write_transformer(
        place.folder / "transformer", case.transformer, place.dtype
    )

    def ours() -> Tensor:
        with load.dit(folder, device=place.device, dtype=place.dtype) as dit:
            return dit.head.head.weight.clone()

    def call() -> Tensor:
        return theirs.loaded(folder, place.device, place.dtype).proj_out.weight.clone()

    def raw() -> None:
        for file in folder.glob("*.safetensors"):
            load_file(file, device=str(place.device))

    missing = theirs.loader_missing()
    yield Pair(
        ours=ours, theirs=None if missing else call, missing=missing,
        variants={"safetensors to the device": raw},
        size=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
    )  # fmt: skip


KINDS: Mapping[str, Callable[[Case, Place], Any]] = {
    "step": _step, "decode": _decode, "encode": _encode, "text": _text, "pipeline": _pipeline,
    "load": _load, "offload": _offload, **whole.KINDS,
}  # fmt: skip
