"""What can be said about things, without making any: recipes, prompts in full, captions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.jobs import planning, source

if TYPE_CHECKING:
    from sora_cli.media.provenance_check import Findings
    from sora_cli.pipeline.caption import Caption
    from sora_cli.pipeline.expand import Expansion


def info(path: Path) -> dict[str, Any]:
    """The recipe that a made file carries. Raises UsageError when it carries none."""
    from sora_cli.media import recipe

    return recipe.read(path)


def verify(path: Path, trust: Path | None = None) -> Findings:
    """What a file says of where it comes from: recipe, signature, and whose that is.

    Args:
        trust: certificates (PEM) of authorities to trust.
    """
    from sora_cli.media.provenance_check import check

    return check(path, trust)


def expand(prompt: str, model: str = "tiny", seed: int | None = None) -> Expansion:
    """The long form of a short prompt, as the model's caption LLM says it."""
    from sora_cli.weights.store import locate

    installed = locate(model)
    return planning.expand(prompt, installed, 0 if seed is None else seed, enabled=True)


def caption(file: Path, *, model: str | None = None, seed: int | None = None) -> Caption:
    """What is seen in a picture or a clip, in words.

    Args:
        model: whose language it is said in: by the captioner that understands it. None: by the
            vision-language model that was pulled, else by tiny's own captioner.

    Raises:
        UsageError: the file cannot be read.
        WeightsError: no captioner is here.
    """
    from sora_cli.pipeline.caption import caption as describe
    from sora_cli.pipeline.instructions import VISION_MODEL
    from sora_cli.runtime.device import choose_device
    from sora_cli.runtime.paths import cache_dir
    from sora_cli.weights import store

    frames = source.moments(source.open_source(file))
    open_domain = store.language_model(VISION_MODEL)
    own = None if model is None and open_domain else store.locate(model or "tiny")
    folder = planning.captioner(own) if own else open_domain
    device = choose_device().device_name if folder and folder == open_domain else "cpu"
    found = describe(
        frames, folder=folder, cache_dir=cache_dir(), seed=0 if seed is None else seed,
        device=device,
    )  # fmt: skip
    made_by = (source.recipe_of(file) or {}).get("model")
    return replace(found, notes=()) if own and made_by == own.spec.name else found
