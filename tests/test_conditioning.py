"""What is given becomes what diffusers' own pipelines make of the same frames.

The tensors that enter the transformer beside the noise are compared: channels and CLIP tokens of
image to video, VACE's control, TI2V's first latent and timesteps. Both sides encode with the same
small random autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sora_cli.models.specs import FAMILIES, ModelSpec
from sora_cli.pipeline.canvas import Canvas, Conditioning
from sora_cli.pipeline.conditioning import Encoders, translate
from sora_cli.pipeline.spans import as_row
from sora_cli.weights import load
from tests import figures, wan_folders

TOLERANCE = 1e-5
WIDTH, HEIGHT, FRAMES = 64, 48, 13
SIZE = (WIDTH, HEIGHT)
SHAPE = (16, 4, 6, 8)  # of the latents
CPU = {"dtype": torch.float32, "device": torch.device("cpu")}


@cache
def pipeline(family: str) -> Any:
    makers: dict[str, Callable[[], Any]] = {
        "wan2.1-i2v": wan_folders.i2v21,
        "wan2.1-flf2v": wan_folders.flf2v,
        "wan2.2-i2v-a14b": wan_folders.i2v_a14b,
        "wan2.1-vace": wan_folders.vace,
        "wan2.2-ti2v": wan_folders.wan22,
    }
    return makers[family]()


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Encoders]]:
    """Our own networks with the pipelines' weights, by family."""
    with ExitStack() as stack:

        @cache
        def of(family: str) -> Encoders:
            parts, root = pipeline(family), tmp_path_factory.mktemp("parts")
            parts.vae.save_pretrained(root / "vae")
            vae = stack.enter_context(load.vae(root / "vae", **CPU))
            pictures = None
            if getattr(parts, "image_encoder", None) is not None:
                parts.image_encoder.save_pretrained(root / "image_encoder")
                parts.image_processor.save_pretrained(root / "image_processor")
                clip = stack.enter_context(load.image_encoder(root / "image_encoder", **CPU))
                pictures = clip.encode
            return Encoders(encode=vae.encode, pictures=pictures)

        yield of


def clip(num_frames: int = FRAMES, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    """Smooth frames that all differ, uint8 [T, H, W, 3]."""
    generator, (width, height) = np.random.default_rng(seed), size
    small = generator.integers(0, 256, (num_frames, height // 8, width // 8, 3), np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BICUBIC)) for f in small]
    )


def as_tensor(frames: np.ndarray) -> Tensor:
    """[1, 3, T, H, W] in ±1."""
    return torch.from_numpy(frames.copy()).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def as_fractions(frames: np.ndarray) -> np.ndarray:
    """[T, H, W, 3] from 0 to 1, as diffusers takes videos."""
    return frames.astype(np.float32) / 255


def spec_of(family: str) -> ModelSpec:
    return FAMILIES[family]


# ---------------------------------------------------------------- channels, CLIP


@pytest.mark.parametrize("last", [False, True], ids=["first", "first and last"])
@pytest.mark.parametrize("family", ["wan2.1-i2v", "wan2.1-flf2v", "wan2.2-i2v-a14b"])
@torch.no_grad()
def test_channels_match_diffusers(
    family: str, last: bool, encoders: Callable[[str], Encoders]
) -> None:
    """Four channels of mask, sixteen of the clip with grey where nothing is known."""
    frames = clip(2)
    rows = [as_row(frames[:1], 0)] + [as_row(frames[1:], -1)] * last
    canvas = translate(rows, spec_of(family), SHAPE, encoders(family), size=SIZE)
    _, expected = pipeline(family).prepare_latents(
        as_tensor(frames[:1])[:, :, 0],
        batch_size=1,
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        last_image=as_tensor(frames[1:])[:, :, 0] if last else None,
        **CPU,
    )
    assert canvas.channels is not None
    assert canvas.channels[:4].sum() == (5 if last else 4) * SHAPE[2] * SHAPE[3]
    what = f"{family} channels, {'first and last' if last else 'first'} frame"
    figures.within(TOLERANCE, what, canvas.channels, expected[0])
    assert not canvas.has_given and canvas.control is None and canvas.lead == 0


@pytest.mark.parametrize("family", ["wan2.1-i2v", "wan2.1-flf2v"])
@torch.no_grad()
def test_clip_sees_what_diffusers_shows_it(
    family: str, encoders: Callable[[str], Encoders]
) -> None:
    frames = clip(2)
    rows = [as_row(frames[1:], -1), as_row(frames[:1], 0)]  # in any order
    if family == "wan2.1-i2v":
        rows = rows[1:]
    canvas = translate(rows, spec_of(family), SHAPE, encoders(family), size=SIZE)
    shown = [Image.fromarray(frame) for frame in frames[: len(rows)]]
    expected = pipeline(family).encode_image(shown, torch.device("cpu")).flatten(0, 1)
    assert canvas.pictures is not None
    figures.within(TOLERANCE, f"{family} CLIP tokens", canvas.pictures[0], expected)


@torch.no_grad()
def test_a_moving_start_is_given_frame_by_frame(encoders: Callable[[str], Encoders]) -> None:
    """diffusers has no such mode; the mask says which pixel frames of a latent are known."""
    family = "wan2.2-i2v-a14b"
    rows = [as_row(clip(5), 0)]
    canvas = translate(rows, spec_of(family), SHAPE, encoders(family), size=SIZE)
    assert canvas.channels is not None
    given = canvas.channels[:4].amin(dim=(2, 3)).T  # [T', 4]
    assert given.tolist() == [[1] * 4, [1] * 4, [0] * 4, [0] * 4]


@torch.no_grad()
def test_channels_where_nothing_is_given(encoders: Callable[[str], Encoders]) -> None:
    """As when a clip is changed by a prompt alone: no frame is known, and all are grey."""
    family = "wan2.2-i2v-a14b"
    canvas = translate([], spec_of(family), SHAPE, encoders(family), size=SIZE)
    grey = encoders(family).encode(torch.zeros(1, 3, FRAMES, HEIGHT, WIDTH))[0]
    assert canvas.channels is not None and not canvas.channels[:4].any()
    assert torch.equal(canvas.channels[4:], grey)


# ---------------------------------------------------------------- timesteps by frame


@torch.no_grad()
def test_ti2v_holds_diffusers_first_latent(encoders: Callable[[str], Encoders]) -> None:
    family, size, shape = "wan2.2-ti2v", (96, 64), (48, 3, 4, 6)
    picture = clip(1, size)
    spec = spec_of(family)
    canvas = translate(
        [as_row(picture, 0)], spec, shape, encoders(family), size=size, patch_size=(2, 2)
    )
    reference = pipeline(family)
    image_to_video = wan_folders.as_image_to_video(reference)
    _, expected, mask = image_to_video.prepare_latents(
        as_tensor(picture)[:, :, 0], 1, 48, height=64, width=96, num_frames=9, **CPU
    )
    figures.within(TOLERANCE, f"{family} first latent", canvas.clean_latents[:, :1], expected[0])
    assert torch.equal(canvas.denoise_mask, mask[0, 0, :, 0, 0])
    tokens = (mask[0][0][:, ::2, ::2] * 417).flatten()  # what diffusers tells each token
    ours = canvas.timesteps(417, batch=1)[0].repeat_interleave(2 * 3)
    assert torch.equal(ours, tokens)


# ---------------------------------------------------------------- VACE


def diffusers_control(
    video: np.ndarray | None, made: np.ndarray | None, references: list[Image.Image] | None = None
) -> Tensor:
    """[96, T, H, W]; `video` [T, H, W, 3] from 0 to 1, `made` [T, H, W] of 0 and 1."""
    parts = pipeline("wan2.1-vace")
    mask = None if made is None else np.repeat(made[..., None], 3, axis=-1).astype(np.float32)
    video, mask, pictures = parts.preprocess_conditions(
        None if video is None else [video],
        None if mask is None else [mask],
        references,
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        **CPU,
    )
    latents = parts.prepare_video_latents(video, mask, pictures, device=CPU["device"])
    return torch.cat([latents, parts.prepare_masks(mask, pictures)], dim=1)[0]


def vace_canvas(
    rows: list[Conditioning], encoders: Encoders, references: list[Tensor] | None = None
) -> Canvas:
    return translate(
        rows, spec_of("wan2.1-vace"), SHAPE, encoders, size=SIZE, references=references or ()
    )


def known(spans: dict[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """A grey video with frames known from each start on, and what is to be made."""
    video = np.full((FRAMES, HEIGHT, WIDTH, 3), 0.5, np.float32)
    made = np.ones((FRAMES, HEIGHT, WIDTH), np.float32)
    for start, frames in spans.items():
        video[start : start + len(frames)] = as_fractions(frames)
        made[start : start + len(frames)] = 0
    return video, made


@torch.no_grad()
def test_vace_with_text_alone_matches_diffusers(encoders: Callable[[str], Encoders]) -> None:
    canvas = vace_canvas([], encoders("wan2.1-vace"))
    assert canvas.control is not None and canvas.control.shape == (96, *SHAPE[1:])
    figures.within(TOLERANCE, "VACE control, text", canvas.control, diffusers_control(None, None))


@pytest.mark.parametrize(
    "starts", [{0: 1}, {0: 1, 12: 1}, {0: 5}, {9: 4}, {0: 5, 9: 4}, {0: 1, 6: 1, 12: 1}], ids=str
)
@torch.no_grad()
def test_vace_with_given_frames_matches_diffusers(
    starts: dict[int, int], encoders: Callable[[str], Encoders]
) -> None:
    """First and last frame, first and last clip, and frames on the way."""
    spans = {start: clip(count, seed=start) for start, count in starts.items()}
    rows = [as_row(frames, start) for start, frames in spans.items()]
    canvas = vace_canvas(rows, encoders("wan2.1-vace"))
    assert canvas.control is not None
    what = f"VACE control, given {starts}"
    figures.within(TOLERANCE, what, canvas.control, diffusers_control(*known(spans)))


@torch.no_grad()
def test_vace_with_a_region_matches_diffusers(encoders: Callable[[str], Encoders]) -> None:
    """A region that moves and lies on no grid; in it diffusers is shown grey, as VACE was."""
    frames, made = clip(), np.zeros((FRAMES, HEIGHT, WIDTH), np.float32)
    for time in range(FRAMES):
        made[time, 5 + time : 21 + time, 11 : 40 + time] = 1
    canvas = vace_canvas([as_row(frames, 0, 1 - made)], encoders("wan2.1-vace"))
    video = np.where(made[..., None] > 0, np.float32(0.5), as_fractions(frames))
    assert canvas.control is not None
    expected = diffusers_control(video, made)
    figures.within(TOLERANCE, "VACE control, a region", canvas.control, expected)
    assert 0 < canvas.control[32:].mean() < 1


@pytest.mark.parametrize("count", [1, 2])
@torch.no_grad()
def test_vace_with_references_matches_diffusers(
    count: int, encoders: Callable[[str], Encoders]
) -> None:
    """Each adds a latent frame ahead, the last one foremost, with nothing to be made in it."""
    pictures, first = clip(count, seed=5), clip(1)
    canvas = vace_canvas(
        [as_row(first, 0)],
        encoders("wan2.1-vace"),
        [as_tensor(picture[None]) for picture in pictures],
    )
    assert canvas.lead == count and canvas.latents_shape == (16, 4 + count, 6, 8)
    assert canvas.control is not None and not canvas.control[32:, :count].any()
    references = [Image.fromarray(picture) for picture in pictures]
    expected = diffusers_control(*known({0: first}), references)
    figures.within(TOLERANCE, f"VACE control, {count} references", canvas.control, expected)


# ---------------------------------------------------------------- known latents put back


@torch.no_grad()
def test_a_family_that_knows_nothing_of_given_frames_gets_them_back_at_each_step(
    encoders: Callable[[str], Encoders],
) -> None:
    spec = replace(spec_of("wan2.1-t2v"), vae_scale_factors=(4, 8, 8))
    canvas = translate([as_row(clip(5), 0)], spec, SHAPE, encoders("wan2.1-vace"), size=SIZE)
    assert canvas.holds == "noised" and canvas.channels is None and canvas.control is None
    assert canvas.denoise_mask.tolist() == [0, 0, 1, 1]
    assert canvas.timesteps(417, batch=2).tolist() == [417, 417]
    expected = encoders("wan2.1-vace").encode(as_tensor(clip(5)))
    assert torch.equal(canvas.clean_latents[:, :2], expected[0])
