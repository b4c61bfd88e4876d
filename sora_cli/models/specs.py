"""The registry: what each model family makes by default, what it was trained on, where it stops.

The only place where a model is known by name. A folder of weights starts from its family's row
and replaces what its own configs say (`dataclasses.replace(FAMILIES["wan2.2-ti2v"], ...)`).
Numbers of the Wan rows: the published repositories' `wan/configs`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

ConditioningForm = Literal["tokens", "channels", "vace", "replace"]
SamplerName = Literal["euler", "unipc", "renoise"]
# t2v: from a prompt alone. i2v: from a first frame. flf2v: from a first and a last frame. given:
# from known frames at the start, the end or both. mask: regions of known frames. reference:
# pictures that say how things look.
Ability = Literal["t2v", "i2v", "flf2v", "given", "mask", "reference"]
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
    max_frames: the hard limit for a video.
    max_pixels, max_tokens: the hard limits for one canvas. Memory grows with the tokens, so the
        longest canvas depends on the size: see `longest`.
    abilities: what it can be asked for.
    image_encoder: given pictures are also shown to it through CLIP (Wan 2.1 image to video).
    boundary: the noise level from which on the high-noise expert (`transformer`) works; below it
        the low-noise one (`transformer_2`) does. None: one transformer.
    guidance_scale_2: the low-noise expert's guidance scale; None: the same.
    guidance_scale_onward: of canvases that go on from what this video made before them, where the
        scale is the model's own; None: the same. What guidance adds, each canvas would add again.
    given_sigma_onward: the noise level at which such a canvas sees what it goes on from, so that
        small errors are not taken for truth and added to (arXiv 2408.14837). 0: as it is.
    frames_onward: of such a canvas, at most; None: num_frames. Every canvas sends what is given
        through the autoencoder once more, so fewer and longer ones lose less.
    fixed_sigmas: the noise levels of a few-step model, without the final 0; None: by the grid.
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
    abilities: tuple[Ability, ...]
    image_encoder: bool = False
    boundary: float | None = None
    guidance_scale_2: float | None = None
    guidance_scale_onward: float | None = None
    given_sigma_onward: float = 0.0
    frames_onward: int | None = None
    fixed_sigmas: tuple[float, ...] | None = None
    expand: bool = True

    def tokens(self, width: int, height: int, num_frames: int) -> int:
        """How many tokens the transformer sees for a legal size and length."""
        latent_frames = (num_frames - 1) // self.vae_scale_factors[0] + 1
        return latent_frames * (width // self.size_multiple) * (height // self.size_multiple)

    @property
    def continues(self) -> bool:
        """Whether a video can be made longer than one canvas, by continuing it."""
        return "given" in self.abilities

    def chunk(self, width: int, height: int, num_frames: int) -> int:
        """Frames of one canvas of a video of `num_frames`: all of them while the model was trained
        on as many (or cannot continue a video), else pieces of its own length."""
        longest = self.longest(width, height)
        if num_frames <= min(self.trained_frames, longest) or not self.continues:
            return num_frames
        return min(self.num_frames, longest)

    def onward(self, width: int, height: int) -> int:
        """Frames of a canvas that goes on from what the video made; 0: as many as of the first."""
        return min(self.longest(width, height), self.frames_onward or 0)

    def scale_onward(self, asked: float | None) -> float | None:
        """Its guidance, where no other scale than the model's is asked for; None: the same."""
        return self.guidance_scale_onward if asked in (None, self.guidance_scale) else None

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
    max_pixels=2048 * 2048,
    max_frames=28_801,  # an hour
    max_tokens=65_536,
    num_inference_steps=8,
    guidance_scale=4.0,
    guidance_scale_onward=1.0,
    given_sigma_onward=0.3,
    frames_onward=49,
    shift=3.0,
    sampler="euler",
    text_len=64,
    negative_prompt="",
    abilities=("t2v", "i2v", "flf2v", "given", "mask"),
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
    max_frames=57_601,  # an hour
    max_tokens=262_144,
    num_inference_steps=50,
    guidance_scale=5.0,
    shift=5.0,
    sampler="unipc",
    text_len=512,
    negative_prompt=WAN_NEGATIVE_PROMPT,
    abilities=("t2v", "given"),
)

WAN21_I2V = replace(
    WAN21_T2V,
    name="wan2.1-i2v",
    family="wan2.1-i2v",
    description="Wan 2.1 image to video, 14B",
    conditioning="channels",
    num_inference_steps=40,
    shift=3.0,  # at 480p; 5 at 720p
    negative_prompt="镜头晃动," + WAN_NEGATIVE_PROMPT,
    abilities=("i2v",),
    image_encoder=True,
)

WAN21_FLF2V = replace(
    WAN21_I2V,
    name="wan2.1-flf2v",
    family="wan2.1-flf2v",
    description="Wan 2.1 first and last frame to video, 14B",
    width=1280,
    height=720,
    num_inference_steps=50,
    guidance_scale=5.5,
    shift=16.0,
    negative_prompt="镜头切换,镜头晃动," + WAN_NEGATIVE_PROMPT,
    abilities=("flf2v",),
)

WAN21_VACE = replace(
    WAN21_T2V,
    name="wan2.1-vace",
    family="wan2.1-vace",
    description="Wan 2.1 VACE: text, given frames and regions to video, 1.3B and 14B",
    conditioning="vace",
    shift=16.0,
    abilities=("t2v", "i2v", "flf2v", "given", "mask", "reference"),
)

WAN22_TI2V = replace(
    WAN21_T2V,
    name="wan2.2-ti2v",
    family="wan2.2-ti2v",
    description="Wan 2.2 text and image to video, 5B",
    conditioning="tokens",
    vae_scale_factors=(4, 16, 16),
    size_multiple=32,
    fps=24.0,
    width=1280,
    height=704,
    num_frames=121,
    trained_sides=(704, 1280),
    trained_frames=121,
    max_frames=86_401,  # an hour
    abilities=("t2v", "i2v", "flf2v", "given", "mask"),
)

WAN22_T2V_A14B = replace(
    WAN21_T2V,
    name="wan2.2-t2v-a14b",
    family="wan2.2-t2v-a14b",
    description="Wan 2.2 text to video, two experts of 14B",
    width=1280,
    height=720,
    num_inference_steps=40,
    shift=12.0,
    guidance_scale=4.0,
    guidance_scale_2=3.0,
    boundary=0.875,
)

WAN22_I2V_A14B = replace(
    WAN22_T2V_A14B,
    name="wan2.2-i2v-a14b",
    family="wan2.2-i2v-a14b",
    description="Wan 2.2 image to video, two experts of 14B",
    conditioning="channels",
    shift=5.0,
    guidance_scale=3.5,
    guidance_scale_2=3.5,
    boundary=0.9,
    abilities=("i2v", "flf2v", "given"),
)

FAMILIES: dict[str, ModelSpec] = {
    spec.family: spec
    for spec in (
        TINY,
        WAN21_T2V,
        WAN21_I2V,
        WAN21_FLF2V,
        WAN21_VACE,
        WAN22_TI2V,
        WAN22_T2V_A14B,
        WAN22_I2V_A14B,
    )
}
