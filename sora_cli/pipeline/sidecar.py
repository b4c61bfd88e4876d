"""`--keep-latents`: what a later `extend` starts from without encoding the clip's end again.

A safetensors file beside the video with the latents of its last frames as `encode_given` makes them
from frames that no video codec has touched, its last frame, and what they belong to. Whatever does
not match is a reason to encode instead, never an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sora_cli.errors import OutputError
from sora_cli.pipeline.request import Settings
from sora_cli.runtime.disk import write_whole

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sora_cli.pipeline.networks import Networks

SUFFIX = ".latents.safetensors"
SCHEMA = "1"

# Mean |difference| of the clip's last frame and the sidecar's, in 8-bit steps: what a codec at a
# low bit rate changes. Frames of another video differ by tens.
_SAME_FRAME = 6.0


def beside(video: Path) -> Path:
    """Where the sidecar of a video lies: `clip.mp4.latents.safetensors`."""
    return video.parent / (video.name + SUFFIX)


def save(path: Path, networks: Networks, settings: Settings, tail: np.ndarray, weights: str) -> int:
    """Write the sidecar of a video that ends in `tail`, atomically.

    Args:
        tail: its last frames at the model's size and rate, uint8 [T, h, w, 3] (`Journal.tail`).
        weights: identity of the weights that encode.

    Returns:
        how many frames the latents stand for.

    Raises:
        OutputError: the file cannot be written.
    """
    import torch
    from safetensors.torch import save as to_bytes

    from sora_cli.pipeline.canvas import encode_given
    from sora_cli.pipeline.pieces import reach_of
    from sora_cli.pipeline.spans import as_video

    spec = networks.model.spec
    reach = reach_of(spec, settings.width, settings.height, settings.chunk_frames)
    head = tail[-reach.fitting_head(len(tail)) :]
    with torch.no_grad(), networks.vae(exact=True) as vae:
        video = as_video(head).to(networks.model.device)
        latents = encode_given(vae.encode, video, "head", reach.scale_t)[0].float().cpu()
    facts = _facts(settings, weights)
    tensors = {"latents": latents.contiguous(), "last": torch.from_numpy(head[-1].copy())}
    try:
        write_whole(path, to_bytes(tensors, metadata=facts))
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(
            f"cannot write {path}: {reason}", hint="leave --keep-latents out"
        ) from error
    return len(head)


def load(
    path: Path, settings: Settings, head: np.ndarray, weights: str
) -> tuple[Tensor | None, str]:
    """The latents [C, k, h', w'] for `Span.head_latents`, or None; and what is to be told.

    Args:
        head: the clip's last frames as the model sees them; the last one is compared.
    """
    import numpy as np
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            latents, last = file.get_tensor("latents"), file.get_tensor("last").numpy()
    except FileNotFoundError:
        return None, ""
    except (OSError, SafetensorError) as error:
        return None, f"{path.name} cannot be read ({error}); the clip's end is encoded again"
    for name, value in _facts(settings, weights).items():
        if facts.get(name) != value:
            said = f"{path.name} has another {name}: {facts.get(name, 'none')}, not {value}"
            return None, f"{said}; the clip's end is encoded again"
    same = last.shape == head[-1].shape
    if not same or np.abs(last.astype(np.float32) - head[-1]).mean() > _SAME_FRAME:
        return None, f"{path.name} belongs to another video; the clip's end is encoded again"
    return latents, f"starts from {path.name}"


def _facts(settings: Settings, weights: str) -> dict[str, str]:
    """What latents must share with a job to be of use to it."""
    size = f"{settings.width}x{settings.height}"
    return {"schema": SCHEMA, "weights": weights, "size": size, "fps": f"{settings.fps:g}"}
