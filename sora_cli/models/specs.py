"""The registry: what each model family makes by default, what it was trained on, where it stops.

The only place where a model is known by name. A folder of weights starts from its family's row
and replaces what its own configs say (`dataclasses.replace(FAMILIES["wan2.2-ti2v"], ...)`).
Numbers of the Wan rows: the published repositories' `wan/configs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ConditioningForm = Literal["tokens", "channels", "vace", "replace"]
SamplerName = Literal["euler", "unipc"]
SigmaGrid = Literal["diffusers", "original"]

# Wan's published negative prompt (wan/configs/shared_config.py), already through `clean_text`:
# the published string has fullwidth commas, which the cleaning turns into ASCII ones, and the
# two forms tokenise differently.
WAN_NEGATIVE_PROMPT = (
    "色调艳丽,过曝,静态,细节模糊不清,字幕,风格,作品,画作,画面,静止,整体发灰,最差质量,低质量,"
    "JPEG压缩残留,丑陋的,残缺的,多余的手指,画得不好的手部,画得不好的脸部,畸形的,毁容的,"
    "形态畸形的肢体,手指融合,静止不动的画面,杂乱的背景,三条腿,背景人很多,倒着走"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """One model's defaults and limits. Sizes in pixels, lengths in frames.

    conditioning: how given latents enter the network. "tokens": per-latent-frame timesteps, the
        given ones at 0; "channels": mask and latents as input channels; "vace": a control branch;
        "replace": the network knows nothing, known latents are pasted at each noise level.
    vae_scale_factors: pixels per latent along (t, h, w).
    size_multiple: sides are multiples of it (VAE stride × patch), so that one token covers
        size_multiple² pixels of a latent frame.
    trained_sides: smallest and largest side seen in training; beyond it a request is made, and
        noted.
    trained_frames: longest clip seen in training; the same.
    max_pixels, max_frames, max_tokens: the hard limits for one canvas. Memory grows with the
        tokens, so the longest clip depends on the size: see `longest`.
    expand: whether prompts are expanded when the user doesn't say.
    """

    name: str
    family: str
    description: str
    licence: str
    conditioning: ConditioningForm
    vae_scale_factors: tuple[int, int, int]
    size_multiple: int
    fps: float
    width: int
    height: int
    num_frames: int
    trained_sides: tuple[int, int]
    trained_frames: int
    max_pixels: int
    max_frames: int
    max_tokens: int
    num_inference_steps: int
    guidance_scale: float
    shift: float
    sampler: SamplerName
    sigma_grid: SigmaGrid = "diffusers"
    text_len: int
    negative_prompt: str
    expand: bool

    def tokens(self, width: int, height: int, num_frames: int) -> int:
        """How many tokens the transformer sees for a legal size and length."""
        latent_frames = (num_frames - 1) // self.vae_scale_factors[0] + 1
        return latent_frames * (width // self.size_multiple) * (height // self.size_multiple)

    def longest(self, width: int, height: int) -> int:
        """The largest legal number of frames (scale_t·k + 1) at a legal size."""
        scale_t = self.vae_scale_factors[0]
        latent_frames = self.max_tokens // self.tokens(width, height, 1)
        num_frames = min(self.max_frames, scale_t * (latent_frames - 1) + 1)
        return scale_t * ((num_frames - 1) // scale_t) + 1


TINY = ModelSpec(
    name="tiny",
    family="tiny",
    description="the embedded model: a small world of simple things, made in seconds on a CPU",
    licence="Apache-2.0",
    conditioning="tokens",
    vae_scale_factors=(4, 16, 16),
    size_multiple=16,
    fps=8.0,
    width=160,
    height=96,
    num_frames=25,
    trained_sides=(64, 160),
    trained_frames=33,
    max_pixels=1024 * 1024,
    max_frames=977,
    max_tokens=65_536,
    num_inference_steps=16,
    guidance_scale=4.0,
    shift=3.0,
    sampler="euler",
    text_len=64,
    negative_prompt="",
    expand=True,
)

WAN21_T2V = ModelSpec(
    name="wan2.1-t2v",
    family="wan2.1-t2v",
    description="Wan 2.1 text to video, 1.3B and 14B",
    licence="Apache-2.0",
    conditioning="replace",
    vae_scale_factors=(4, 8, 8),
    size_multiple=16,
    fps=16.0,
    width=832,
    height=480,
    num_frames=81,
    trained_sides=(480, 1280),
    trained_frames=81,
    max_pixels=1920 * 1088,
    max_frames=20 * 81,
    max_tokens=262_144,
    num_inference_steps=50,
    guidance_scale=5.0,
    shift=5.0,
    sampler="unipc",
    text_len=512,
    negative_prompt=WAN_NEGATIVE_PROMPT,
    expand=False,
)

WAN22_TI2V = ModelSpec(
    name="wan2.2-ti2v",
    family="wan2.2-ti2v",
    description="Wan 2.2 text and image to video, 5B",
    licence="Apache-2.0",
    conditioning="tokens",
    vae_scale_factors=(4, 16, 16),
    size_multiple=32,
    fps=24.0,
    width=1280,
    height=704,
    num_frames=121,
    trained_sides=(704, 1280),
    trained_frames=121,
    max_pixels=1920 * 1088,
    max_frames=20 * 121,
    max_tokens=262_144,
    num_inference_steps=50,
    guidance_scale=5.0,
    shift=5.0,
    sampler="unipc",
    text_len=512,
    negative_prompt=WAN_NEGATIVE_PROMPT,
    expand=False,
)

FAMILIES: dict[str, ModelSpec] = {spec.family: spec for spec in (TINY, WAN21_T2V, WAN22_TI2V)}
