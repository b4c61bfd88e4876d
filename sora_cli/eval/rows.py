"""The rows of the report card: what is measured, against which floor and which baselines.

Shapes: B clips, T frames, H×W pixels; clips are uint8 [B, T, H, W, 3].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sora_cli.eval.clips import Studio, decode, encode, make
from sora_cli.eval.judge import Judge, Reading, looked_at, read
from sora_cli.eval.report import ATTRIBUTES, Row
from sora_cli.eval.sheet import contact_sheet
from sora_cli.eval.truth import CLASSES, OF_THINGS, Prompt, paths, prompts, render_all
from sora_cli.train.captions import attributes
from sora_cli.train.world import Scene
from sora_cli.weights import load

SHOWN = 12  # clips on a contact sheet


TRIPS = 12  # through the autoencoder, one after the other: what a minute takes
CAPS = {  # names of what costs more than a clip by --samples, and how many there are at most
    "join": (32, "clips to extend, loop and connect"),
    "edit": (16, "clips to change, at each strength"),
    "file": (8, "files to extend and to re-cut"),
    "long": (5, "videos of a minute"),
    "physics": (32, "clips to go on from five true frames"),
    "pair": (20, "scenes to be made impossible"),
    "event": (16, "clips of each kind of event in the wide world"),
    "camera": (16, "clips whose camera moves"),
    "size": (16, "clips at each new size and length"),
    "word": (48, "clips of each question about words, each way"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Exam:
    """One sitting: the model, the judge, and how many prompts of which split."""

    studio: Studio
    judge: Judge
    samples: int
    split: str
    caps: Mapping[str, int] = field(default_factory=dict)  # by the names of CAPS, else its numbers
    kept: dict[str, Tensor] = field(default_factory=dict)  # what several rows need, made once

    def most(self, cap: str | None) -> int:
        """How many samples what is named in CAPS gets; None: what has no cap."""
        if cap is None:
            return self.samples
        return min(self.samples, self.caps.get(cap, CAPS[cap][0]))

    def prompts(
        self, level: str, *, cap: str | None = None, num_frames: int | None = None,
        only: Callable[[Scene], bool] | None = None,
    ) -> list[Prompt]:  # fmt: skip
        """The sitting's first prompts at the model's own size; by default all, of its length."""
        spec = self.studio.model.spec
        return prompts(
            self.most(cap), split=self.split, level=level, width=spec.width, height=spec.height,
            num_frames=spec.num_frames if num_frames is None else num_frames, only=only,
        )  # fmt: skip

    def truth(self) -> tuple[Tensor, Tensor]:
        """Ground-truth clips of all the sitting's scenes, and the things' masks."""
        if "frames" not in self.kept:
            scenes = [prompt.scene for prompt in self.prompts("dense")]
            self.studio.say(f"rendering {len(scenes)} scenes\n")
            frames, masks = render_all(scenes, str(self.studio.device))
            self.kept.update(frames=frames, masks=masks)
        return self.kept["frames"], self.kept["masks"]

    def truth_reconstructed(self) -> Tensor:
        """The ground truth after the model's autoencoder."""
        if "reconstructed" not in self.kept:
            self.kept["reconstructed"] = self.reconstructed(self.truth()[0])
        return self.kept["reconstructed"]

    def reconstructed(self, frames: Tensor) -> Tensor:
        """Clips after the model's autoencoder, fp32."""
        self.studio.say(f"encoding and decoding {len(frames)} clips\n")
        part, device = self.studio.model.parts["vae"], self.studio.device
        with load.vae(part, device=device, dtype=torch.float32) as vae:
            return decode(vae, encode(vae, frames))

    def decoded(self, latents: list[Tensor]) -> Tensor:
        """Generated latents as clips."""
        part, device = self.studio.model.parts["vae"], self.studio.device
        with load.vae(part, device=device, dtype=torch.float32) as vae:
            return decode(vae, latents)

    def dense(self) -> tuple[list[Prompt], Tensor]:
        """As many dense prompts as the time box allows, maybe none, and the clips made of them."""
        asked = self.prompts("dense")
        if "dense" not in self.kept:
            latents = make(self.studio, asked)
            self.kept["dense"] = self.decoded(latents) if latents else torch.empty(0)
        return asked[: len(self.kept["dense"])], self.kept["dense"]

    def show(self, frames: Tensor, asked: list[Prompt], name: str) -> None:
        """A contact sheet of the first clips in the work folder, nothing chosen."""
        self.sheet(name, list(frames[:SHOWN].numpy()), [prompt.caption.text for prompt in asked])

    def sheet(self, name: str, videos: Sequence[np.ndarray], texts: Sequence[str]) -> None:
        """As `show`, of clips of any lengths, uint8 [T, H, W, 3] each."""
        path = self.studio.work / f"{name}-{self.split}.png"
        count = min(SHOWN, len(videos), len(texts))
        if count:
            contact_sheet(videos[:count], texts[:count], path)
            self.studio.say(f"contact sheet: {path}\n")


# ---------------------------------------------------------------------- measures


def psnr(ours: Tensor, truth: Tensor, mask: Tensor | None = None) -> float:
    """Mean over clips of the peak signal-to-noise ratio (dB), inside a mask [B, T, H, W] or all.

    Clips with an empty mask do not count.
    """
    values = []
    for number in range(len(truth)):
        error = (ours[number].float() - truth[number].float()).square().mean(-1)  # [T, H, W]
        picked = error if mask is None else error[mask[number]]
        if picked.numel():
            values.append(-10 * torch.log10(picked.mean().clamp_min(1e-3) / 255**2))
    return float(torch.stack(values).mean())


def scores(
    asked: list[Prompt], readings: list[Reading], *, ordered: bool = True
) -> dict[str, list[bool]]:
    """Right or wrong, by attribute, for every attribute that a prompt names.

    ordered: whether the words say which thing is left and which right. Where they don't, the
    things count in whichever order fits better.
    """
    found: dict[str, list[bool]] = {name: [] for name in CLASSES}
    for prompt, reading in zip(asked, readings, strict=True):
        wanted = {k: v for k, v in attributes(prompt.scene).items() if k in prompt.caption.named}
        orders = ("01",) if ordered or len(prompt.scene.things) == 1 else ("01", "10")
        tries = [_compare(wanted, reading.values, order) for order in orders]
        best = max(tries, key=lambda rows: sum(right for _, right in rows))
        for name, right in best:
            found[name].append(right)
    return found


def _compare(
    wanted: dict[str, str], read_values: dict[str, str], order: str
) -> list[tuple[str, bool]]:
    rows = []
    for name in CLASSES:
        for slot in (0, 1) if name in OF_THINGS else (None,):
            key = name if slot is None else f"{name}{slot}"
            seen = name if slot is None else f"{name}{order[slot]}"
            if key in wanted:
                alone = slot == 1 and read_values["count"] == "1"  # there is no second thing
                rows.append((name, not alone and read_values[seen] == wanted[key]))
    return rows


def percentages(found: dict[str, list[bool]]) -> dict[str, float]:
    """% right by the report's attribute names, and their plain mean, without what nobody asked."""
    share = {
        "thing" if name == "kind" else name: 100 * sum(rows) / len(rows)
        for name, rows in found.items()
        if rows
    }
    return share | {"mean": sum(share.values()) / len(share)}


def place_errors(readings: list[Reading], asked: list[Prompt]) -> float:
    """Mean distance (% of the width) from where things are seen to where they should be."""
    distances = []
    for reading, prompt in zip(readings, asked, strict=True):
        scene = prompt.scene
        true = paths(scene, looked_at(scene.num_frames))  # [FRAMES, SLOTS, 2]
        offset = (reading.places - true) * torch.tensor((1.0, scene.height / scene.width))
        distance = offset.norm(dim=2)
        distances.append(distance[~distance.isnan()])
    return 100 * float(torch.cat(distances).mean())


# ---------------------------------------------------------------------- rows


def compression(exam: Exam) -> list[Row]:
    """What the autoencoder keeps of ground-truth clips."""
    asked = exam.prompts("dense")
    frames, masks = exam.truth()
    ours = exam.truth_reconstructed()
    exam.show(ours, asked, "compression")
    floor = place_errors(read(exam.judge, frames), asked)
    error = place_errors(read(exam.judge, ours), asked)
    values = {
        "PSNR, dB": psnr(ours, frames),
        "PSNR inside the things, dB": psnr(ours, frames, masks),
        "position error, times the floor": error / floor,
    }
    again = exam.most("event")
    for _ in range(TRIPS - 1):  # as a video in many pieces is sent through it
        ours = exam.reconstructed(ours[:again])
    return [
        *(
            Row(
                ability="compression", measure=measure, value=value, samples=len(asked),
                split=exam.split, floor=1.0 if "times" in measure else None,
            )
            for measure, value in values.items()
        ),
        Row(
            ability="compression", measure=f"PSNR after {TRIPS} trips, dB",
            value=psnr(ours, frames[:again]), samples=len(ours), split=exam.split,
        ),
    ]  # fmt: skip


def prompt_fidelity(exam: Exam) -> list[Row]:
    """Whether the clips show what dense and short prompts say."""
    asked, clips = exam.dense()
    if not asked:
        return []
    frames = exam.truth()[0][: len(asked)]
    exam.show(clips, asked, "dense")
    value, floor, vae_floor = (
        percentages(scores(asked, read(exam.judge, video)))
        for video in (clips, frames, exam.truth_reconstructed()[: len(asked)])
    )
    rows = [
        Row(
            ability="prompt fidelity", measure=f"{name}, % right", value=value[name],
            floor=floor[name], baselines={"VAE floor": vae_floor[name]}, samples=len(asked),
            split=exam.split,
        )
        for name in (*ATTRIBUTES, "mean")
    ]  # fmt: skip
    return rows + _short_prompts(exam, frames)


def _short_prompts(exam: Exam, frames: Tensor) -> list[Row]:
    """As above, counting only what a short prompt names; the scenes are the dense prompts' own."""
    asked = exam.prompts("short")
    latents = make(exam.studio, asked)
    asked = asked[: min(len(latents), len(frames))]
    if not asked:
        return []
    clips = exam.decoded(latents[: len(asked)])
    exam.show(clips, asked, "short")
    value, floor = (
        percentages(scores(asked, read(exam.judge, video), ordered=False))["mean"]
        for video in (clips, frames[: len(asked)])
    )
    return [
        Row(
            ability="prompt fidelity", measure="mean of short prompts, % right", value=value,
            floor=floor, samples=len(asked), split=exam.split,
        )
    ]  # fmt: skip


def animate(exam: Exam) -> list[Row]:
    """Clips that go on from the ground truth's first frame."""
    asked = exam.prompts("dense")
    frames = exam.truth()[0]
    latents = make(exam.studio, asked, given=frames[:, :1])
    asked, frames = asked[: len(latents)], frames[: len(latents)]
    if not asked:
        return []
    clips = exam.decoded(latents)
    exam.show(clips, asked, "animate")
    first = frames[:, :1]
    copied = first.expand_as(frames)
    videos = {"value": clips, "floor": frames, "copy the first frame": copied}
    readings = {name: read(exam.judge, video) for name, video in videos.items()}
    start_floor = psnr(exam.reconstructed(first), first)
    start = Row(
        ability="animate", measure="frame 0 PSNR, dB", value=psnr(clips[:, :1], first),
        baselines={"VAE floor": start_floor}, goal=start_floor, samples=len(asked),
        split=exam.split,
    )  # fmt: skip
    motion = {n: percentages(scores(asked, rows))["motion"] for n, rows in readings.items()}
    places = {n: place_errors(rows, asked) for n, rows in readings.items()}
    rest = [
        Row(
            ability="animate", measure=measure, value=values.pop("value"),
            floor=values.pop("floor"), baselines=values, samples=len(asked), split=exam.split,
        )
        for measure, values in (
            ("motion, % right", motion), ("trajectory error, % of the width", places),
        )
    ]  # fmt: skip
    return [start, *rest]


def judge_accuracy(
    judge: Judge, *, samples: int, split: str, width: int, height: int, num_frames: int
) -> dict[str, float]:
    """% right on ground truth, by attribute, and the error of places (% of the width)."""
    asked = prompts(
        samples, split=split, level="dense", width=width, height=height, num_frames=num_frames
    )
    readings = read(judge, render_all([prompt.scene for prompt in asked])[0])
    return percentages(scores(asked, readings)) | {"places": place_errors(readings, asked)}
