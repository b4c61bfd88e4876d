"""How the networks of a job share the memory: planned in numbers before anything is loaded.

`plans` gives the ladder from the fastest way to the smallest, `choose` takes the first that fits,
and after an allocation has failed `next_plan` takes the one below. Nothing here needs torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal

from sora_cli.errors import DeviceError, UsageError
from sora_cli.runtime import costs, costs_vae
from sora_cli.runtime.shapes import JobShape, NetworkShapes, Storage

# What a prediction may be off by; a plan fits where this much more would still do.
MARGIN = 1.10
# Sides of decode tiles in pixels. Neighbours overlap by a quarter (`models/vae_tiles.py`).
TILES = (512, 256, 128)
_GB = 1e9
_SMALLER = "a smaller --size, a shorter --duration, or a smaller model (sora weights list)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """How a transformer sits: `blocks_resident` of its blocks stay on the device, the first ones.

    The others stay in pinned host memory and come one ahead of the computation
    (`runtime/offload.py`). None: all are on the device.
    """

    blocks_resident: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """One way of sharing memory. Bytes are those of the device, beyond what the process has.

    Attributes:
        name: the way, in words.
        storage: "fp8" keeps the transformer's blocks in 8 bits; the only plan that changes pixels.
        placement: of the transformer's blocks.
        keep: networks stay once they are loaded; else there is one at a time, of experts too.
        keep_text_encoder: with `keep`: the text encoder stays too.
        tile: side of the decoder's tiles in pixels, None for whole frames.
        text_encoder_on: where the text encoder runs.
        peak_bytes: the most of all phases. phase_bytes: by phase.
        host_bytes: host memory that the plan takes beside a device that has its own.
        seconds: of the whole job, where the device's rate is known.
        disk_bytes: of the weights.
    """

    name: str = "all networks stay loaded"
    storage: Storage = "dtype"
    placement: Placement = field(default_factory=Placement)
    keep: bool = True
    keep_text_encoder: bool = True
    tile: int | None = None
    text_encoder_on: Literal["device", "cpu"] = "device"
    peak_bytes: int = 0
    phase_bytes: Mapping[str, int] = field(default_factory=dict)
    host_bytes: int = 0
    seconds: float | None = None
    disk_bytes: int = 0

    def say(self, available: int | None = None) -> str:
        """One line for people, with what there is where that is given in bytes."""
        of = "" if available is None else f" of {available / _GB:.1f}"
        line = f"about {self.peak_bytes / _GB:.1f}{of} GB of memory"
        if self.phase_bytes:
            line += f", most to {max(self.phase_bytes, key=lambda name: self.phase_bytes[name])}"
        if self.host_bytes:
            line += f", and {self.host_bytes / _GB:.1f} GB of the host's"
        line += f": {self.name}"
        return line if self.seconds is None else f"{line}; about {_say_seconds(self.seconds)}"


def plans(
    shapes: NetworkShapes,
    job: JobShape,
    *,
    rounds: int = 1,
    storage: Storage = "dtype",
    host_available_bytes: int | None = None,
) -> tuple[MemoryPlan, ...]:
    """The ladder: each plan is slower than the one before, or changes pixels, and needs less.

    Args:
        rounds: videos, or pieces of a long one, that go through the same networks.
        storage: "fp8" where the user asked for it: then every plan has it. Else those with fp8
            come last, since a seed should mean the same picture on every machine.
        host_available_bytes: of a machine whose device has its own memory; None: enough.
    """
    found = []
    for way in _ways(shapes, job, storage):
        plan, seconds = _reckon(way, shapes, job, rounds)
        if host_available_bytes is None or plan.host_bytes * MARGIN <= host_available_bytes:
            found.append((plan.storage != storage, seconds, plan))
    ladder: list[MemoryPlan] = []
    for *_, plan in sorted(found, key=lambda row: row[:2]):
        if not ladder or plan.peak_bytes < ladder[-1].peak_bytes:
            ladder.append(plan)
    return tuple(ladder)


def phase_bytes(way: MemoryPlan, shapes: NetworkShapes, job: JobShape) -> dict[str, int]:
    """Bytes of each phase under one way of sharing memory, whose own numbers are not read."""
    overhead = costs.overhead_bytes(job.device_kind)
    phases = _Parts.of(way, shapes, job).phase_bytes(way, shapes, job)
    return {name: taken + overhead for name, taken in phases.items()}


def best(plans: Sequence[MemoryPlan], bytes_: int | None) -> MemoryPlan | None:
    """The first plan that fits into so many bytes with the margin; None where none does."""
    if bytes_ is None:
        return plans[0]
    return next((plan for plan in plans if plan.peak_bytes * MARGIN <= bytes_), None)


def choose(
    plans: Sequence[MemoryPlan], available: int | None, limit: str = "auto", *, hint: str = _SMALLER
) -> MemoryPlan:
    """The plan to run by.

    Args:
        available: bytes free on the device, None where that is not known.
        limit: `--memory`: auto (what is free), low (the smallest plan that leaves the pixels as
            they are), or a number of GB, which stands instead of what is free.

    Raises:
        UsageError: a limit that means nothing.
        DeviceError: nothing fits; says what the smallest plan would need, and what to try.
    """
    if limit == "low":
        same = [plan for plan in plans if plan.storage == plans[0].storage]
        plans = [*same[-1:], *(plan for plan in plans if plan not in same)]
        bound = available
    else:
        bound = available if limit == "auto" else parse_memory(limit)
    plan = best(plans, bound)
    if plan is not None:
        return plan
    assert bound is not None
    least = plans[-1]
    raise DeviceError(
        f"this needs about {least.peak_bytes * MARGIN / _GB:.1f} GB of memory at least "
        f"({least.name}), and there are {bound / _GB:.1f} GB",
        hint=hint,
    )


def next_plan(plans: Sequence[MemoryPlan], failed: MemoryPlan) -> MemoryPlan | None:
    """The plan to go on with after memory ran out under `failed`; None at the ladder's end."""
    return next((plan for plan in plans if plan.peak_bytes < failed.peak_bytes), None)


def parse_memory(text: str) -> int:
    """`8`, `8GB`, `7.5 GB` → bytes. Raises UsageError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:GB|G)?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise UsageError(f"--memory {text!r} is no amount", hint="--memory auto, low, or 8 (GB)")
    return int(float(found[1]) * _GB)


def smaller_job(
    shapes: NetworkShapes, job: JobShape, available: int | None, limit: str = "auto"
) -> str:
    """A hint for `choose`: the largest of some smaller jobs that fits, as options to type."""
    bound = parse_memory(limit) if limit not in ("auto", "low") else available
    time, tall, wide = shapes.autoencoder.scale_factors
    _, rows, columns = shapes.transformer.patch_size
    for side, length in product((1.0, 0.75, 0.5, 0.375, 0.25), (1.0, 0.5, 0.25)):
        width = max(1, int(job.width * side) // (wide * columns)) * wide * columns
        height = max(1, int(job.height * side) // (tall * rows)) * tall * rows
        frames = int((job.num_frames - 1) * length) // time * time + 1
        smaller = replace(job, width=width, height=height, num_frames=frames)
        if smaller != job and best(plans(shapes, smaller), bound) is not None:
            return f"--size {width}x{height} --num-frames {frames}"
    return "a smaller model: sora weights list"


def _ways(shapes: NetworkShapes, job: JobShape, storage: Storage) -> Iterator[MemoryPlan]:
    """Every combination that makes sense, without its numbers."""
    own_memory = job.device_kind == "cuda"
    layers = shapes.transformer.num_layers
    tall, wide = shapes.autoencoder.scale_factors[1:]
    tiles = [t for t in TILES if t % tall == 0 == t % wide and t < max(job.width, job.height)]
    places: list[Literal["device", "cpu"]] = ["device", "cpu"] if own_memory else ["device"]
    storages: list[Storage] = ["dtype", "fp8"] if storage == "dtype" else ["fp8"]
    for stored, tile, place in product(storages, (None, *tiles), places):
        way = MemoryPlan(storage=stored, tile=tile, text_encoder_on=place)
        yield way
        yield replace(way, keep_text_encoder=False)
        yield replace(way, keep=False, keep_text_encoder=False)
        if own_memory:
            for resident in dict.fromkeys(layers * eighths // 8 for eighths in range(7, -1, -1)):
                placement = Placement(blocks_resident=resident)
                yield replace(way, keep=False, keep_text_encoder=False, placement=placement)


def _reckon(
    way: MemoryPlan, shapes: NetworkShapes, job: JobShape, rounds: int
) -> tuple[MemoryPlan, float]:
    """A way with its numbers, and the seconds by which ways are put in order."""
    parts = _Parts.of(way, shapes, job)
    phases = phase_bytes(way, shapes, job)
    rate = costs.rate(job)
    seconds = _seconds(way, parts, shapes, job, rounds, rate or costs.NOMINAL)
    plan = replace(
        way,
        name=_say_way(way, shapes.transformer.num_layers),
        phase_bytes=phases,
        peak_bytes=max(phases.values()),
        host_bytes=parts.host,
        seconds=seconds if rate is not None else None,
        disk_bytes=shapes.disk_bytes or 2 * _parameters(shapes),
    )
    return plan, seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parts:
    """Bytes of the weights on the device, and of what must be in the host's memory.

    streamed: of the blocks that pass through; they are in `host`, and two of them in `experts`.
    """

    text: int
    image: int
    expert: int
    experts: int
    autoencoder: int
    encoder_fp32: int
    streamed: int
    host: int

    @classmethod
    def of(cls, way: MemoryPlan, shapes: NetworkShapes, job: JobShape) -> _Parts:
        shape, item = shapes.transformer, job.item_bytes
        text, _ = costs.text_encoder_bytes(shapes.text_encoder, item, shape.text_len)
        block = costs.block_weight_bytes(shape, item, way.storage)
        expert, streamed = costs.transformer_bytes(shape, item, way.storage), 0
        resident = way.placement.blocks_resident
        if resident is not None:
            streamed = (shape.num_layers - resident) * block
            expert += min(2 * block, streamed) - streamed
        vae = _vae_parameters(shapes)
        host = streamed if way.keep is False else streamed * shape.experts
        if way.text_encoder_on == "cpu":
            host = max(host, text)
        if way.tile is not None and job.device_kind == "cuda":
            frames = 3 * job.num_frames * job.width * job.height
            host = max(host, frames * job.item_bytes)
        # A decoder in half precision stands beside the fp32 encoder of given frames.
        both = bool(job.given_frames) and job.item_bytes != 4
        return cls(
            text=0 if way.text_encoder_on == "cpu" else text,
            image=shapes.image_encoder_parameters * item,
            expert=expert, experts=expert * shape.experts,
            autoencoder=vae * job.item_bytes, encoder_fp32=vae * 4 if both else 0,
            streamed=streamed, host=host,
        )  # fmt: skip

    def phase_bytes(self, way: MemoryPlan, shapes: NetworkShapes, job: JobShape) -> dict[str, int]:
        """Bytes of each phase: the weights that are there, and what lives beside them."""
        live = _live_bytes(way, shapes, job)
        if not way.keep:
            weights = {
                "encode text": self.text,
                "encode given": max(self.image, self.encoder_fp32 or self.autoencoder),
                "denoise": self.expert,
                "decode": self.autoencoder,
            }
        else:
            stay = self.image + self.experts + self.autoencoder + self.encoder_fp32
            text = stay + self.text if way.keep_text_encoder else self.text
            stay = text if way.keep_text_encoder else stay
            weights = {"encode text": text}
            weights |= dict.fromkeys(("encode given", "denoise", "decode"), stay)
        return {name: weights[name] + taken for name, taken in live.items()}


def _live_bytes(way: MemoryPlan, shapes: NetworkShapes, job: JobShape) -> dict[str, int]:
    """What lives beside the weights in each phase of the job."""
    latent_frames, *_ = job.latent_size(shapes.autoencoder)
    shape, vae = shapes.transformer, shapes.autoencoder
    _, tall, wide = vae.scale_factors
    height, width = job.height, job.width
    if way.tile is not None:
        height, width = tile_side(height, way.tile, tall)[1], tile_side(width, way.tile, wide)[1]
    kind = job.device_kind
    part = costs_vae.decoding(vae, latent_frames, height, width, workspace=kind)
    decoding = part.peak * job.item_bytes
    if way.tile is not None and kind != "cuda":
        decoding += 3 * job.num_frames * job.width * job.height * job.item_bytes
    _, text = costs.text_encoder_bytes(shapes.text_encoder, job.item_bytes, shape.text_len)
    live = {
        "encode text": 0 if way.text_encoder_on == "cpu" else text,
        "denoise": costs.denoise_bytes(shapes, job, storage=way.storage),
        "decode": decoding,
    }
    if job.given_frames:
        given = 3 * job.given_frames * job.width * job.height * 4
        part = costs_vae.encoding(vae, job.given_frames, height, width, workspace=kind)
        live["encode given"] = given + part.peak * 4
    return live


def _seconds(
    way: MemoryPlan, parts: _Parts, shapes: NetworkShapes, job: JobShape, rounds: int,
    rate: costs.Rate,
) -> float:  # fmt: skip
    """How long the whole takes at these rates."""
    work = costs.work(shapes, job, tile_ratio=_tile_ratio(way.tile, shapes, job))
    tera, layers = rate.tflops * 1e12, shapes.transformer.num_layers
    text_rate = costs.cpu_rate(job.cores, job.dtype).tflops * 1e12
    text = work.encode_text / (text_rate if way.text_encoder_on == "cpu" else tera)
    denoise = work.denoise / tera
    resident = way.placement.blocks_resident
    if resident is not None:
        calls = max(1, job.steps * job.contexts // job.batch)
        passing = calls * parts.streamed / (costs.TRANSFER_GBPS * 1e9)
        denoise = denoise * resident / layers + max(denoise * (1 - resident / layers), passing)
    autoencoder = (work.encode_given + work.decode) / (rate.autoencoder_tflops * 1e12)
    once = text + rounds * (denoise + autoencoder)
    again = 0 if way.keep else parts.experts + parts.streamed + parts.autoencoder
    # Rounded, so that of two ways that take as long the simpler one stays first.
    return round(once + (rounds - 1) * again / (costs.RELOAD_GBPS * 1e9), 1)


def tile_side(size: int, tile: int, stride: int) -> tuple[int, int]:
    """How many tiles lie along `size` pixels and how long each is; as `vae_tiles.spread` does it.

    They overlap by a quarter of `tile` at least, and are as small as that many can be.
    """
    overlap = -(-(tile // 4) // stride) * stride
    count = max(1, -(-(size - overlap) // (tile - overlap)))
    return count, -(-(size + (count - 1) * overlap) // (count * stride)) * stride


def _tile_ratio(tile: int | None, shapes: NetworkShapes, job: JobShape) -> float:
    """How many times over a pixel is decoded."""
    if tile is None:
        return 1.0
    ratio, (_, tall, wide) = 1.0, shapes.autoencoder.scale_factors
    for size, stride in ((job.height, tall), (job.width, wide)):
        count, side = tile_side(size, tile, stride)
        ratio *= count * side / size
    return ratio


def _vae_parameters(shapes: NetworkShapes) -> int:
    _, tall, wide = shapes.autoencoder.scale_factors
    return (
        costs_vae.encoding(shapes.autoencoder, 1, tall, wide).parameters
        + costs_vae.decoding(shapes.autoencoder, 1, tall, wide).parameters
    )


def _parameters(shapes: NetworkShapes) -> int:
    transformer = shapes.transformer
    others = shapes.text_encoder.parameters + shapes.image_encoder_parameters
    return transformer.parameters * transformer.experts + others + _vae_parameters(shapes)


def _say_way(way: MemoryPlan, layers: int) -> str:
    words = ["one network at a time"]
    if way.keep:
        words = ["all networks stay loaded" if way.keep_text_encoder else "the text encoder leaves"]
    if way.text_encoder_on == "cpu":
        words.append("the text encoder on the CPU")
    if way.storage == "fp8":
        words.append("blocks in 8 bits")
    if (resident := way.placement.blocks_resident) is not None:
        words.append(f"{resident} of {layers} blocks on the device")
    if way.tile is not None:
        words.append(f"decoded in tiles of {way.tile} pixels")
    return ", ".join(words)


def _say_seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
