"""What a transformer in training makes, as a contact sheet to look at while it goes on.

Needs no judge and no ffmpeg; the prompts are the first of the development split, nothing chosen.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from sora_cli.eval.clips import Studio, decode, make
from sora_cli.eval.sheet import contact_sheet
from sora_cli.eval.truth import prompts
from sora_cli.models.dit import DiT
from sora_cli.models.text_encoder import TextEncoder
from sora_cli.train.export import save_dit, save_text_encoder, write_sums
from sora_cli.weights import load, store

ROWS, EVERY = 6, 600.0  # clips of a sheet; seconds of training between two


def sample_sheet(
    start: Path, dit: DiT, text: TextEncoder, path: Path, device: torch.device, rows: int = ROWS
) -> None:
    """Write a PNG of what these networks make with the other parts of the model folder `start`.

    They are saved and read again as a user's are: half precision, the model's default settings.
    """
    with tempfile.TemporaryDirectory(prefix="sora-sheet-") as work:
        folder = Path(work) / "model"
        shutil.copytree(start, folder, ignore=shutil.ignore_patterns("transformer", "text_encoder"))
        save_dit(folder / "transformer", dit)
        save_text_encoder(folder / "text_encoder", text)
        write_sums(folder)
        model = store.locate(str(folder))
        spec, studio = model.spec, Studio(
            model=model, device=device, work=Path(work) / "clips", say=lambda text: None,
            dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
            deadline=time.monotonic() + 3600,
        )  # fmt: skip
        asked = prompts(
            rows, split="development", level="dense", width=spec.width, height=spec.height,
            num_frames=spec.num_frames,
        )  # fmt: skip
        latents = make(studio, asked)
        with load.vae(model.parts["vae"], device=device, dtype=torch.float32) as vae:
            clips = decode(vae, latents).numpy()
        contact_sheet(list(clips), [prompt.caption.text for prompt in asked], path)
    sys.stderr.write(f"{path}\n")
