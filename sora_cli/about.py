"""What can be said about things, without making any: recipes, prompts in full, captions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.jobs import planning, source

if TYPE_CHECKING:
    from sora_cli.pipeline.caption import Caption
    from sora_cli.pipeline.expand import Expansion


def info(path: Path) -> dict[str, Any]:
    """The recipe that a made file carries. Raises UsageError when it carries none."""
    from sora_cli.media import recipe

    return recipe.read(path)


def expand(prompt: str, model: str = "tiny", seed: int | None = None) -> Expansion:
    """The long form of a short prompt, as the model's caption LLM says it."""
    from sora_cli.weights.store import locate

    installed = locate(model)
    return planning.expand(prompt, installed, 0 if seed is None else seed, enabled=True)


def caption(file: Path, *, seed: int | None = None) -> Caption:
    """What is seen in a picture or a clip, in words, by the vision-language model.

    Raises:
        WeightsError: none has been pulled.
    """
    from sora_cli.pipeline.caption import caption as describe
    from sora_cli.pipeline.instructions import VISION_MODEL
    from sora_cli.runtime.device import choose_device
    from sora_cli.runtime.paths import cache_dir
    from sora_cli.weights import store

    frames = source.moments(source.open_source(file))
    folder = store.language_model(VISION_MODEL)
    device = choose_device().device_name if folder else "cpu"
    return describe(
        frames, folder=folder, cache_dir=cache_dir(), seed=0 if seed is None else seed,
        device=device,
    )  # fmt: skip
