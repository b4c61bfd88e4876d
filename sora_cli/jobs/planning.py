"""What a request comes down to: its model, its LoRAs, its memory plan, its prompt said in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from sora_cli.errors import DeviceError, UsageError
from sora_cli.pipeline.events import Event, Observer

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from sora_cli.models.specs import Ability, ModelSpec
    from sora_cli.pipeline.expand import Expansion
    from sora_cli.pipeline.request import Request, Settings
    from sora_cli.runtime.device import DevicePlan
    from sora_cli.runtime.plan import MemoryPlan
    from sora_cli.runtime.shapes import JobShape
    from sora_cli.weights.lora_arguments import Lora
    from sora_cli.weights.store import Installed

GivenAs = Literal["first", "first-and-last", "clip"]


def find_model(request: Request) -> Installed:
    """The model that a request is for, on this machine, with the schedule that its LoRAs bring."""
    from sora_cli.weights import store

    installed = store.locate(
        request.model or "tiny", vae=request.vae, text_encoder=request.text_encoder
    )
    return replace(installed, spec=store.with_loras(installed.spec, _asked_loras(request)))


def _asked_loras(request: Request) -> list[Lora]:
    from sora_cli.weights.lora_arguments import parse_lora

    return [parse_lora(text) for text in request.loras]


def find_loras(request: Request, spec: ModelSpec) -> tuple[Lora, ...]:
    """The LoRAs of a request as files, each for its expert where the model has two."""
    from sora_cli.weights import store
    from sora_cli.weights.lora_arguments import assign_experts, for_expert

    loras = store.lora_files(_asked_loras(request))
    return for_expert(loras, None) if spec.boundary is None else assign_experts(loras)


def plan_memory(
    request: Request, installed: Installed, settings: Settings, device: DevicePlan,
    begun: str | None = None, *, given_frames: int = 0,
) -> tuple[MemoryPlan, tuple[MemoryPlan, ...]]:  # fmt: skip
    """The fastest way of sharing the memory that fits, and the ladder of all.

    begun: the way in which a run began; it stays while it fits, because another may change bits.

    Raises:
        DeviceError: nothing fits.
    """
    from sora_cli.runtime import plan
    from sora_cli.runtime.device import free_memory
    from sora_cli.runtime.memory import available_memory
    from sora_cli.weights import store

    shapes, limit = store.network_shapes(installed), request.memory or "auto"
    shape = job_shape(settings, installed.spec, device, given_frames)
    free = free_memory(device.device)
    ladder = plan.plans(
        shapes,
        shape,
        rounds=-(-settings.num_frames // settings.chunk_frames),
        storage="fp8" if request.quantization == "fp8" else "dtype",
        host_available_bytes=available_memory() if device.device.type == "cuda" else None,
    )
    same = next((way for way in ladder if way.name == begun), None)
    if same is not None and plan.best([same], free) is not None:
        return same, ladder
    try:
        return plan.choose(ladder, free, limit), ladder
    except DeviceError as error:
        hint = plan.smaller_job(shapes, shape, free, limit)
        raise DeviceError(error.message, hint=hint) from error


def require_fp8_matmuls(settings: Settings, device: DevicePlan) -> None:
    """Raises DeviceError where `--fp8-matmul` is asked of a device that has no such matmuls."""
    from sora_cli.models.fp8 import multiplies_fp8

    if settings.fp8_matmul is None:
        return
    if not multiplies_fp8(device.device):
        raise DeviceError(
            f"{device.device_name} has no fp8 matmuls; GPUs of compute capability 8.9 and up have",
            hint="leave out --fp8-matmul; --quantization fp8 saves memory everywhere",
        )
    if device.dtype_name != "bfloat16":
        raise DeviceError(
            f"fp8 matmuls give bfloat16, not {device.dtype_name}", hint="--dtype bfloat16"
        )


def job_shape(
    settings: Settings, spec: ModelSpec, device: DevicePlan, given_frames: int = 0
) -> JobShape:
    """One canvas of a job, as the planner counts it; given_frames: those that are encoded."""
    from sora_cli.models import fused
    from sora_cli.pipeline.generate import BATCHED_GUIDANCE_TOKENS
    from sora_cli.runtime.shapes import JobShape

    guided = settings.guidance_scale != 1
    frames, (scale_t, tall, wide) = settings.chunk_frames, spec.vae_scale_factors
    latents = ((frames - 1) // scale_t + 1) * (settings.height // tall) * (settings.width // wide)
    return JobShape(
        width=settings.width,
        height=settings.height,
        num_frames=frames,
        steps=settings.num_inference_steps,
        contexts=2 if guided else 1,
        batch=2 if guided and latents <= BATCHED_GUIDANCE_TOKENS else 1,
        given_frames=given_frames,
        dtype=device.dtype_name,
        device_kind=device.kind,
        device_name=device.chip,
        cores=device.cores,
        kernels=fused.wanted() and not settings.compile,
    )


def expand(
    prompt: str,
    installed: Installed,
    seed: int,
    *,
    enabled: bool,
    picture: bool = False,
    given: Sequence[np.ndarray] = (),
    given_as: GivenAs | None = None,
    device: str = "cpu",
) -> Expansion:
    """The long form of a prompt, by the model's own caption LLM or by the one that was pulled.

    Args:
        picture: one frame is to be made, in which nothing moves.
        given, given_as: pictures [H, W, 3] uint8 that the video is to begin with, for an LLM that
            sees.
    """
    from sora_cli.pipeline.expand import expand as long_form
    from sora_cli.runtime.paths import cache_dir

    return long_form(
        prompt,
        folder=language_model(installed, sees=bool(given)),
        seed=seed,
        cache_dir=cache_dir(),
        enabled=enabled,
        picture=picture,
        model=installed.spec.name,
        given=given,
        given_as=given_as,
        device=device,
    )


def language_model(installed: Installed, *, sees: bool) -> Path | None:
    """The folder of the LLM that writes prompts for a model, None where there is none."""
    from sora_cli.pipeline.instructions import TEXT_MODEL, VISION_MODEL
    from sora_cli.weights import store

    if own := installed.parts.get("language_model"):
        return own
    text, vision = (store.language_model(name) for name in (TEXT_MODEL, VISION_MODEL))
    return (vision or text) if sees else (text or vision)


def language_model_sees(installed: Installed) -> bool:
    """Whether the LLM that writes prompts for a model looks at what is given."""
    from sora_cli.pipeline.ask import sees

    folder = language_model(installed, sees=True)
    return folder is not None and sees(folder)


def captioner(installed: Installed) -> Path | None:
    """The folder of what describes clips in the model's language, None where there is none.

    A model with a language of its own (tiny) understands no other captioner's.
    """
    from sora_cli.pipeline.instructions import VISION_MODEL
    from sora_cli.weights import store

    own = installed.parts.get("captioner")
    if own or "language_model" in installed.parts:
        return own
    return store.language_model(VISION_MODEL)


def require(installed: Installed, ability: Ability, what: str) -> None:
    """Raises UsageError with models that can, where this one cannot do what is asked."""
    from sora_cli.weights.manifest import rows

    spec = installed.spec
    if ability not in spec.abilities:
        able = [row.name for row in rows() if row.kind == "model" and ability in row.spec.abilities]
        others = " or ".join(f"-m {name}" for name in able[:3])
        raise UsageError(f"{spec.name} cannot {what}", hint=f"a model that can: {others}")


def settle(request: Request, observer: Observer) -> tuple[Installed, Settings]:
    """The model and the settings of a request; its notes are told."""
    from sora_cli.pipeline.request import resolve

    installed = find_model(request)
    settings, notes = resolve(request, installed.spec)
    for note in notes:
        observer(Event(phase="note", message=note))
    return installed, settings
