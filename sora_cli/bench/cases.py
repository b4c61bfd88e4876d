"""What is measured: the fixed table of workloads for a CPU and for a GPU.

A case is plain numbers; `workloads` makes it run. `scaled` makes the same case small enough for any
machine: that is how the GPU's table is proved on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from sora_cli.bench.goals import Goal
from sora_cli.models.dit import DiTConfig
from sora_cli.models.text_encoder import TextEncoderConfig
from sora_cli.models.vae import VAEConfig
from sora_cli.runtime import costs, costs_vae
from sora_cli.runtime.plan import MemoryPlan, Placement, phase_bytes
from sora_cli.runtime.shapes import AutoencoderShape, DeviceKind, JobShape, NetworkShapes
from sora_cli.weights.configs import WAN21_MEAN, WAN21_STD, WAN22_MEAN, WAN22_STD

Kind = Literal[
    "step", "encode", "decode", "text", "pipeline", "load", "offload",
    "tail", "first", "batch", "long",
]  # fmt: skip
DtypeName = Literal["float32", "bfloat16"]

HALF: tuple[DtypeName, ...] = ("bfloat16",)
BOTH: tuple[DtypeName, ...] = ("float32", "bfloat16")
# Relative RMS difference of the two sides' results, above which nothing is timed. In bfloat16 each
# side is as far from the truth as from the other: 2⁻⁸ an operation, added up over the layers. Of a
# pipeline it is mostly ours being rounded to 8 bits, and in bfloat16 sixteen steps with guidance.
TOLERANCES: Mapping[Kind, Mapping[DtypeName, float]] = {
    "step": {"float32": 1e-4, "bfloat16": 5e-2},
    "encode": {"float32": 1e-4, "bfloat16": 5e-2},
    "decode": {"float32": 1e-4, "bfloat16": 5e-2},
    "text": {"float32": 1e-4, "bfloat16": 5e-2},
    "pipeline": {"float32": 5e-3, "bfloat16": 2e-2},
    "load": {"float32": 0.0, "bfloat16": 0.0},
    "offload": {"float32": 0.0, "bfloat16": 0.0},
    "tail": {"float32": 0.0, "bfloat16": 0.0},
    "first": {"float32": 0.0, "bfloat16": 0.0},
    "batch": {"float32": 0.0, "bfloat16": 0.0},
    "long": {"float32": 0.0, "bfloat16": 0.0},
}
WHOLE: tuple[Kind, ...] = ("tail", "first", "batch", "long")  # kinds that are whole jobs (`whole`)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One workload.

    name: as `--only` takes it; what: one line for the report.
    transformer, vae, text: configs of the networks. The autoencoder of a "step" only says how many
        pixels a latent is.
    width, height, num_frames: pixels. rows: texts in a step, 2 with guidance; prompts of a text.
    steps: of a pipeline. count: videos of a batch; how many times a long video has num_frames.
    per_token: the other side's pipeline gives every token its own timestep (TI2V).
    embedded: the package's own weights instead of random ones.
    dtypes: that it is measured in. target: the ratio asked for; goals: what else is.
    compiles: ours is timed with its blocks compiled, too; fp8: with 8-bit feed-forward layers.
    """

    name: str
    kind: Kind
    what: str
    transformer: DiTConfig
    vae: VAEConfig
    text: TextEncoderConfig
    width: int
    height: int
    num_frames: int
    rows: int = 1
    steps: int = 1
    count: int = 1
    per_token: bool = False
    embedded: bool = False
    dtypes: tuple[DtypeName, ...] = BOTH
    target: float | None = None
    goals: tuple[Goal, ...] = ()
    compiles: bool = False
    fp8: bool = False
    tolerances: Mapping[DtypeName, float] = field(default_factory=dict)

    def tolerance(self, dtype: DtypeName) -> float:
        """The relative RMS difference that is allowed."""
        return self.tolerances.get(dtype, TOLERANCES[self.kind][dtype])

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """(T, H, W) of the latents."""
        return self._job.latent_size(AutoencoderShape.of(self.vae))

    @property
    def shapes(self) -> NetworkShapes:
        """The networks as plain numbers."""
        return NetworkShapes.of(self.transformer, self.vae, self.text)

    @property
    def attention_flops(self) -> int | None:
        """Of `flops` those of attention over the grid, which have a floor of their own."""
        if self.kind not in ("step", "offload"):
            return None
        tokens, shape = self._job.tokens(self.shapes), self.transformer
        return self.rows * shape.num_layers * 4 * tokens**2 * shape.hidden_size

    def predicted_memory(self, dtype: DtypeName, device: DeviceKind, batch: int) -> int | None:
        """Bytes that the planner expects with this network alone; `batch`: rows in one call."""
        phases = {"step": "denoise", "offload": "denoise", "decode": "decode",
                  "text": "encode text"}  # fmt: skip
        if self.kind not in phases:
            return None
        job = replace(self._job, dtype=dtype, device_kind=device, batch=batch)
        place = Placement(blocks_resident=0 if self.kind == "offload" else None)
        alone = MemoryPlan(keep=False, keep_text_encoder=False, placement=place)
        return phase_bytes(alone, self.shapes, job)[phases[self.kind]]

    @property
    def _job(self) -> JobShape:
        return JobShape(
            width=self.width, height=self.height, num_frames=self.num_frames, steps=self.steps,
            contexts=self.rows,
        )  # fmt: skip

    @property
    def flops(self) -> int | None:
        """By the planner's formulae, whatever either side saves; None of loads and whole jobs."""
        shapes, size = self.shapes, (self.height, self.width)
        if self.kind == "load" or self.kind in WHOLE:
            return None
        if self.kind in ("step", "offload"):
            return self.rows * costs.forward_flops(shapes, self._job)
        if self.kind == "text":
            return self.rows * costs.text_flops(shapes.text_encoder, self.transformer.text_len)
        if self.kind == "encode":
            return costs_vae.encoding(shapes.autoencoder, self.num_frames, *size).flops
        if self.kind == "decode":
            return costs_vae.decoding(shapes.autoencoder, self.latent_size[0], *size).flops
        work = costs.work(shapes, self._job)
        return work.encode_text + work.denoise + work.decode


UMT5_XXL = TextEncoderConfig(
    vocab_size=256_384, hidden_size=4096, num_layers=24, num_heads=64, head_dim=64, ffn_dim=10_240
)
VAE_21 = VAEConfig(
    z_dim=16, encoder_dim=96, decoder_dim=96, dim_mult=(1, 2, 4, 4), residual=False,
    temporal_downsample=(False, True, True), latents_mean=WAN21_MEAN, latents_std=WAN21_STD,
)  # fmt: skip
VAE_22 = VAEConfig(
    z_dim=48, encoder_dim=160, decoder_dim=256, dim_mult=(1, 2, 4, 4), residual=True, patch_size=2,
    temporal_downsample=(False, True, True), latents_mean=WAN22_MEAN, latents_std=WAN22_STD,
)  # fmt: skip
WAN_1_3B = DiTConfig(
    num_layers=30, hidden_size=1536, num_heads=12, ffn_dim=8960, in_channels=16, out_channels=16,
    text_dim=4096,
)  # fmt: skip
WAN_5B = replace(
    WAN_1_3B, hidden_size=3072, num_heads=24, ffn_dim=14_336, in_channels=48, out_channels=48
)
WAN_14B_BLOCKS = replace(WAN_1_3B, num_layers=4, hidden_size=5120, num_heads=40, ffn_dim=13_824)
SMALL_DIT = DiTConfig(
    num_layers=8, hidden_size=384, num_heads=6, ffn_dim=1536, in_channels=16, out_channels=16,
    text_dim=512,
)  # fmt: skip
SMALL_21 = replace(VAE_21, encoder_dim=32, decoder_dim=32)
SMALL_22 = replace(VAE_22, encoder_dim=32, decoder_dim=48)

_WAN21 = Case(
    name="", kind="step", what="", transformer=WAN_1_3B, vae=VAE_21, text=UMT5_XXL, width=832,
    height=480, num_frames=81, rows=2, dtypes=HALF,
)  # fmt: skip
_WAN22 = replace(
    _WAN21, transformer=WAN_5B, vae=VAE_22, width=1280, height=704, num_frames=121, per_token=True
)

# At most 2 % slower than with every block on the card, which stands in diffusers' place.
_OFFLOAD = replace(
    _WAN21, kind="offload", transformer=WAN_14B_BLOCKS, target=0.98,
    goals=(Goal(kind="ratio", bound=0.98, what="against every block on the card"),),
)  # fmt: skip


def whole_jobs(like: Case, name: str, size: str) -> tuple[Case, ...]:
    """What comes after denoising, and more than one video; a few steps stand for all."""
    length = f"{size}, {like.num_frames} frames"
    longer = 12 * (like.num_frames - 1) + 1
    return (
        replace(
            like, name=f"{name}-tail", kind="tail",
            what=f"{length}: decoding and writing at once (beside it: the slower alone)",
            goals=(Goal(kind="multiple", bound=1.05, what="times the slower stage"),),
        ),
        replace(
            like, name=f"{name}-first", kind="first",
            what=f"{length}: latents to the first frames (beside it: decode all, write all)",
            goals=(Goal(kind="seconds", bound=0.5),),
        ),
        replace(
            like, name=f"{name}-batch", kind="batch", steps=4, count=3,
            what=f"{length}: 3 prompts of 4 steps as a batch (beside it: the device's part alone)",
            goals=(Goal(kind="busy", bound=0.97),
                   Goal(kind="multiple", bound=1.031, what="times the device's part")),
        ),
        replace(
            like, name=f"{name}-long", kind="long", steps=2, count=12,
            what=f"{size}, {longer} frames, 2 steps (beside it: {like.num_frames} frames)",
            goals=(Goal(kind="multiple", bound=17, what="times the short video"),
                   Goal(kind="flat", bound=1.05)),
        ),
    )  # fmt: skip


CUDA_CASES: tuple[Case, ...] = (
    replace(
        _WAN21, name="1.3b-480p-step", target=1.2,
        what="Wan 2.1 1.3B, 832×480, 81 frames: a guided step",
        compiles=True, fp8=True,
        goals=(
            Goal(kind="seconds", bound=45, times=50, what="50 steps, seconds"),
            Goal(kind="ratio", bound=1.2), Goal(kind="compiled", bound=1.05),
            Goal(kind="floor", bound=0.9), Goal(kind="memory", bound=6),
        ),
    ),
    replace(
        _WAN22, name="5b-704p-step", target=1.25,
        what="TI2V-5B, 1280×704, 121 frames: a guided step, theirs with a timestep a token",
        goals=(
            Goal(kind="seconds", bound=79, times=50, what="50 steps, seconds"),
            Goal(kind="ratio", bound=1.25), Goal(kind="compiled", bound=1.08),
            Goal(kind="memory", bound=14),
        ),
    ),
    replace(
        _WAN21, name="vae21-480p-decode", kind="decode", target=1.8,
        what="autoencoder 2.1, 832×480, 81 frames: decoding",
        goals=(
            Goal(kind="seconds", bound=1.2), Goal(kind="ratio", bound=1.8),
            Goal(kind="fp32", bound=4),
        ),
    ),
    replace(
        _WAN22, name="vae22-704p-decode", kind="decode",
        what="autoencoder 2.2, 1280×704, 121 frames: decoding",
        goals=(Goal(kind="seconds", bound=3), Goal(kind="fp32", bound=3)),
    ),
    replace(
        _WAN21, name="14b-blocks-480p", transformer=WAN_14B_BLOCKS, rows=1, target=1.15, fp8=True,
        what="4 of the 14B's 40 blocks, 832×480, 81 frames: one forward",
        goals=(
            Goal(kind="seconds", bound=4.95, times=20, what="guided step of 40 blocks, seconds"),
            Goal(kind="ratio", bound=1.15),
        ),
    ),
    replace(
        _WAN21, name="14b-blocks-720p", transformer=WAN_14B_BLOCKS, rows=1, width=1280, height=720,
        target=1.12, what="4 of the 14B's 40 blocks, 1280×720, 81 frames: one forward",
        goals=(
            Goal(kind="seconds", bound=19.3, times=20, what="guided step of 40 blocks, seconds"),
            Goal(kind="ratio", bound=1.12), Goal(kind="compiled", bound=1.0),
        ),
    ),
    replace(
        _OFFLOAD, name="14b-offload-480p",
        what="the same blocks from host memory, a guided step (beside it: all on the card)",
    ),
    replace(
        _OFFLOAD, name="14b-offload-720p", width=1280, height=720,
        what="the same at 1280×720 (beside it: all on the card)",
        # The other 36 blocks' keys and values of the texts are 0.76 GB.
        goals=(*_OFFLOAD.goals, Goal(kind="memory", bound=9.24)),
    ),
    replace(
        _WAN21, name="weights-5b", kind="load", transformer=WAN_5B, vae=VAE_22, target=3.0,
        what="the 5B's transformer from the page cache to the device",
        goals=(Goal(kind="rate", bound=10), Goal(kind="ratio", bound=3)),
    ),
    replace(
        _WAN21, name="umt5-xxl", kind="text", what="umT5-XXL, 2 prompts of 512 tokens",
        goals=(Goal(kind="seconds", bound=0.05),),
    ),
    *whole_jobs(_WAN21, "1.3b-480p", "832×480"),
    *whole_jobs(_WAN22, "5b-704p", "1280×704")[:2],
)  # fmt: skip


def cpu_cases(tiny: tuple[DiTConfig, VAEConfig, TextEncoderConfig]) -> tuple[Case, ...]:
    """The CPU's table; `tiny`: the configs of the embedded model."""
    transformer, vae, text = tiny
    clip = Case(
        name="", kind="step", what="", transformer=transformer, vae=vae, text=text, width=160,
        height=96, num_frames=25, rows=2, steps=16, embedded=True,
    )  # fmt: skip
    small = replace(clip, embedded=False, rows=1)
    rows: list[Case] = [
        replace(
            clip, name="tiny-step", target=1.3,
            what="tiny's transformer, 160×96, 25 frames (420 tokens), both halves of guidance",
        ),
        replace(
            small, name="21m-step", transformer=SMALL_DIT, vae=VAE_21, width=256, height=256,
            num_frames=29, target=1.3, what="a transformer of 21 M, 2,048 tokens of width 384",
        ),
        replace(
            clip, name="tiny-pipeline", kind="pipeline", target=2.0,
            what="tiny's whole pipeline: texts, 16 steps with guidance, decoding",
        ),
    ]  # fmt: skip
    for kind in ("decode", "encode"):
        for label, title, config in (
            ("tiny", "tiny's autoencoder", vae), ("21", "autoencoder 2.1, width 32", SMALL_21),
            ("22", "autoencoder 2.2, widths 32 and 48", SMALL_22),
        ):  # fmt: skip
            case = replace(small, name=f"vae{label}-{kind}", vae=config, kind=kind, target=1.5)
            what = f"{title}, 160×96, 25 frames: {kind[:-1]}ing"
            rows.append(replace(case, what=what, embedded=label == "tiny"))
    # Tiny's canvas is 25 frames, 5 seconds are 41 and a minute 481. Cards have goals, not this.
    for kind, frames in (("tail", 97), ("first", 97), ("batch", 25), ("long", 41)):
        like = replace(clip, num_frames=frames, dtypes=HALF)
        (case,) = (c for c in whole_jobs(like, "tiny", "160×96") if c.kind == kind)
        rows.append(replace(case, goals=()))
    return tuple(rows)


def _part(number: int, scale: float, unit: int, least: int) -> int:
    """A number scaled down to a multiple of `unit`, `least` at least, itself at most."""
    return min(number, max(least, round(number * scale / unit) * unit))


def scaled(case: Case, scale: float) -> Case:
    """The case with every size times `scale`: layers, heads, widths, pixels and frames.

    The embedded model's networks stay as they are.
    """
    if scale >= 1:
        return case
    time, tall, wide = AutoencoderShape.of(case.vae).scale_factors
    _, ph, pw = case.transformer.patch_size
    case = replace(
        case,
        width=_part(case.width, scale, wide * pw, wide * pw),
        height=_part(case.height, scale, tall * ph, tall * ph),
        num_frames=time * _part((case.num_frames - 1) // time, scale, 1, 1) + 1,
        steps=_part(case.steps, scale, 1, 2),
        count=_part(case.count, scale, 1, 2),
    )
    if case.embedded:
        return case
    old, text = case.transformer, case.text
    heads, text_heads = _part(old.num_heads, scale, 1, 1), _part(text.num_heads, scale, 1, 1)
    width = _part(text.hidden_size, scale, 8, 16)
    return replace(
        case,
        transformer=replace(
            old, num_layers=_part(old.num_layers, scale, 1, 1), num_heads=heads,
            hidden_size=heads * old.head_dim, ffn_dim=_part(old.ffn_dim, scale, 8, 32),
            text_dim=width, text_len=_part(old.text_len, scale, 8, 16),
        ),
        vae=replace(
            case.vae, encoder_dim=_part(case.vae.encoder_dim, scale, 8, 8),
            decoder_dim=_part(case.vae.decoder_dim, scale, 8, 8),
        ),
        text=replace(
            text, vocab_size=_part(text.vocab_size, scale, 64, 64), hidden_size=width,
            num_layers=_part(text.num_layers, scale, 1, 1), num_heads=text_heads,
            ffn_dim=_part(text.ffn_dim, scale, 8, 16),
        ),
    )  # fmt: skip
