"""Whole jobs: decoding beside writing, the first frame, several prompts in a row, a long video.

Beside each stands not diffusers but a part of the same work: the slower of two stages, decoding
before writing, what the device has to do, a short video. Frames go where a job's go, through
ffmpeg; on a machine without it, raw into a file. A note says which.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sora_cli.batch import Shared
from sora_cli.bench import checkpoints
from sora_cli.bench.cases import Case
from sora_cli.bench.pairs import SEED, Pair, Place, draw, networks_of, part_of, weight_bytes
from sora_cli.bench.timing import lap
from sora_cli.errors import SoraError
from sora_cli.jobs import job
from sora_cli.pipeline import generate
from sora_cli.pipeline.events import Event
from sora_cli.pipeline.networks import Networks
from sora_cli.pipeline.request import Request, Settings, resolve
from sora_cli.pipeline.spans import Span, single
from sora_cli.pipeline.timeline import play
from sora_cli.weights import store
from sora_cli.weights.store import Installed

PROMPT = "a red ball rolls to the right on the grass by day"
FPS = 16.0
MEDIA_BEGINS = b"moof"  # of a streamed mp4: the first box with frames in it follows
Frames = Iterator[np.ndarray]


def has_ffmpeg() -> bool:
    """Whether a job could write a video here."""
    try:
        job.video_media().check_stream()
    except (SoraError, ImportError):
        return False
    return True


def writer_note() -> str:
    """Where the frames of whole jobs went."""
    return "frames went " + ("through ffmpeg into mp4" if has_ffmpeg() else "raw into a file")


def write_raw(frames: Frames, path: Path) -> None:
    """What stands for an encoder where there is none: bytes into a file."""
    with path.open("wb", buffering=0) as file:
        for chunk in frames:
            file.write(np.ascontiguousarray(chunk).data)


def write(frames: Frames, case: Case, path: Path) -> None:
    """Into a file as a job does it, its recipe copied in at the end."""
    if not has_ffmpeg():
        write_raw(frames, path.with_suffix(".rgb"))
        return
    job.video_media().write(
        path.with_suffix(".mp4"), frames, size=(case.width, case.height), fps=FPS, recipe=dict,
        target=job.Target(force=True),
    )  # fmt: skip


class _Reader:
    """The reader of a stream, who leaves when the first frames are there."""

    def __init__(self) -> None:
        self.seen = b""

    def write(self, block: bytes) -> int:
        self.seen = self.seen[-len(MEDIA_BEGINS) :] + bytes(block)
        if MEDIA_BEGINS in self.seen:
            raise BrokenPipeError
        return len(block)

    def flush(self) -> None:
        """Nothing waits here."""


def write_first(frames: Frames, case: Case, path: Path) -> None:
    """As a job streams it, until a reader has the first frames."""
    if not has_ffmpeg():
        write_raw(iter([next(frames)]), path.with_suffix(".rgb"))
        return
    reader: Any = _Reader()
    with suppress(BrokenPipeError):
        size = (case.width, case.height)
        job.video_media().write(reader, frames, size=size, fps=FPS, target=job.Target())


def _kept(frames: Frames, kept: dict[str, np.ndarray]) -> Frames:
    """The same frames one by one, as a job hands them on; the first and the last are kept."""
    for frame in single(frames):
        kept.setdefault("first", frame)
        kept["last"] = frame
        yield frame[None]


@contextmanager
def _decoder(case: Case, place: Place) -> Iterator[tuple[Networks, Tensor]]:
    """An autoencoder as a job has it, warmed, and latents to decode."""
    part = part_of(
        case, place, "vae", lambda folder: checkpoints.write_vae(folder, case.vae, torch.float32)
    )
    with networks_of(case, place, {"vae": part}) as networks:
        yield networks, draw(place, 1, case.vae.z_dim, *case.latent_size)


@contextmanager
def _tail(case: Case, place: Place) -> Iterator[Pair]:
    """Decoding into the encoder, beside the slower of the two alone."""
    with _decoder(case, place) as (networks, latents):
        frames = list(_kept(generate.decode_frames(networks, latents), {}))

        def work(chunks: Callable[[], Frames], *, into_file: bool) -> Callable[[], Tensor]:
            def call() -> Tensor:
                kept: dict[str, np.ndarray] = {}
                if into_file:
                    write(_kept(chunks(), kept), case, place.folder / "tail")
                else:
                    for _ in _kept(chunks(), kept):
                        pass
                return torch.from_numpy(kept["last"])

            return call

        def decoded() -> Frames:
            return generate.decode_frames(networks, latents)

        decoding = work(decoded, into_file=False)
        writing = work(lambda: iter(frames), into_file=True)

        def least(call: Callable[[], Tensor]) -> float:
            return min(lap(call, place.device).wall for _ in range(3))  # the first one warms

        slower = max((decoding, writing), key=least)
        yield Pair(
            ours=work(decoded, into_file=True), theirs=slower, notes=[writer_note()],
            variants={"decoding alone": decoding, "writing alone": writing},
            **_weights(networks),
        )  # fmt: skip


@contextmanager
def _first(case: Case, place: Place) -> Iterator[Pair]:
    """Until the first frames are out, beside all of them decoded and then written."""
    with _decoder(case, place) as (networks, latents):

        def first() -> Tensor:
            kept: dict[str, np.ndarray] = {}
            decoded = generate.decode_frames(networks, latents)
            write_first(_kept(decoded, kept), case, place.folder / "first")
            return torch.from_numpy(kept["first"])

        def handed() -> Tensor:  # what is left when a player takes raw frames
            decoded = generate.decode_frames(networks, latents)
            frame = next(decoded)[0]
            decoded.close()  # type: ignore[attr-defined]
            return torch.from_numpy(frame)

        def whole() -> Tensor:
            frames = list(generate.decode_frames(networks, latents))
            write(_kept(iter(frames), {}), case, place.folder / "whole")
            return torch.from_numpy(frames[0][0])

        first(), whole()
        yield Pair(
            ours=first, theirs=whole, notes=[writer_note()], **_weights(networks),
            variants={"until the encoder has the first frame": handed},
        )  # fmt: skip


def _weights(networks: Networks, case: Case | None = None) -> dict[str, Any]:
    """What both sides hold: the autoencoder, and of a whole model the others too."""
    with networks.vae(exact=False) as vae:
        size = weight_bytes(vae)
    if case is not None:
        others = case.shapes.transformer.parameters + case.shapes.text_encoder.parameters
        size += others * networks.model.dtype.itemsize
    return {"ours_weights": size, "theirs_weights": size}


def model_of(case: Case, place: Place) -> Installed:
    """The embedded model, or one of random weights; a canvas is no longer than the case's clip."""
    model = "tiny"
    if not case.embedded:
        folder = checkpoints.write_model(
            place.folder / "model", case.transformer, case.vae, case.text, place.dtype,
            per_frame=case.per_token,
        )  # fmt: skip
        model = str(folder)
    found = store.locate(model)
    frames = min(found.spec.num_frames, case.num_frames)
    return replace(found, spec=replace(found.spec, num_frames=frames, trained_frames=frames))


def request_of(case: Case, place: Place, prompt: str, num_frames: int) -> Request:
    """What is asked for, on the place's device and in its dtype."""
    return Request(
        prompt=prompt, width=case.width, height=case.height, num_frames=num_frames, seed=SEED,
        num_inference_steps=case.steps, expand=False, device=place.device.type,
        dtype=str(place.dtype).removeprefix("torch."),
    )  # fmt: skip


@contextmanager
def _own_folders(folder: Path) -> Iterator[None]:
    """Caches and runs of jobs lie below a folder."""
    own = {f"XDG_{name}_HOME": str(folder / name.lower()) for name in ("CACHE", "STATE")}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _media(kept: dict[str, np.ndarray]) -> job.Media:
    """Where a job's frames go here; the first and the last are kept."""
    real = job.video_media()
    if has_ffmpeg():

        def write_real(path: Any, frames: Frames, **how: Any) -> tuple[str, ...]:
            return real.write(path, _kept(frames, kept), **how)

        return replace(real, write=write_real)

    def write_without(path: Any, frames: Frames, **_: Any) -> tuple[str, ...]:
        write_raw(_kept(frames, kept), Path(path))
        return ()

    def check(path: Any, *, force: bool = False) -> str:
        return real.suffix

    return replace(real, check=check, write=write_without)


@contextmanager
def _batch(case: Case, place: Place) -> Iterator[Pair]:
    """New prompts one after the other as `sora batch` makes them, beside the device's part."""
    installed = model_of(case, place)
    notes, loads = [writer_note(), ""], [0]
    numbers = {side: count() for side in ("ours", "theirs")}

    def asked(side: str) -> tuple[Request, Settings]:
        prompt = f"{PROMPT}, {next(numbers[side])}"
        request = request_of(case, place, prompt, case.num_frames)
        return request, resolve(request, installed.spec)[0]

    def heard(event: Event) -> None:
        loads[0] += event.phase == "load"

    with (
        _own_folders(place.folder), Shared() as shared,
        networks_of(case, place, installed.parts, installed.spec) as networks,
    ):  # fmt: skip

        def ours() -> Tensor:
            kept: dict[str, np.ndarray] = {}
            for number in range(case.count):
                request, settings = asked("ours")
                span = Span(num_frames=settings.num_frames, prompt=settings.prompt)
                verb = job.Verb(media=_media(kept), segments=lambda _, span=span: [span])  # type: ignore[misc]
                file = place.folder / f"{number}.mp4"
                target = job.Target(output=file, force=True, shared=shared)
                loads[0] = -1  # each job tells once that it begins to load
                for _ in job.make(request, installed, settings, verb, target, heard):
                    notes[1] = f"networks loaded by the last video of the batch: {loads[0]}"
            return torch.from_numpy(kept["last"])

        def device_alone() -> Tensor:
            for _ in range(case.count):
                _, settings = asked("theirs")
                texts = generate.read_texts(networks, settings.prompt, settings)
                canvas = generate.lay_canvas(networks, settings)
                latents = generate.make_video_latents(networks, texts, canvas, settings, SEED)
                for chunk in generate.decode_frames(networks, latents):
                    frame = chunk[-1]
            return torch.from_numpy(frame)

        yield Pair(ours=ours, theirs=device_alone, notes=notes, **_weights(networks, case))


@contextmanager
def _long(case: Case, place: Place) -> Iterator[Pair]:
    """A video `count` times as long, canvas after canvas, beside the short one."""
    installed = model_of(case, place)
    frames = 1 + case.count * (case.num_frames - 1)
    with networks_of(case, place, installed.parts, installed.spec) as networks:

        def made(num_frames: int) -> Callable[[], Tensor]:
            request = request_of(case, place, PROMPT, num_frames)
            settings = resolve(request, installed.spec)[0]

            def call() -> Tensor:
                kept: dict[str, np.ndarray] = {}
                span = Span(num_frames=settings.num_frames, prompt=settings.prompt)
                video = play(networks, settings, [span], seed=SEED)
                write(_kept(video, kept), case, place.folder / "long")
                return torch.from_numpy(kept["first"])

            return call

        yield Pair(
            ours=made(frames), theirs=made(case.num_frames), notes=[writer_note()],
            **_weights(networks, case),
        )  # fmt: skip


KINDS: Mapping[str, Callable[[Case, Place], Any]] = {
    "tail": _tail, "first": _first, "batch": _batch, "long": _long,
}  # fmt: skip
