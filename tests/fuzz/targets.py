"""What is fuzzed: for each kind of file, valid ones, how they are changed, and who reads them."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from sora_cli.errors import SoraError, UsageError
from sora_cli.media import image, packets, probe, reader, stills, timing
from sora_cli.media import recipe as recipes
from sora_cli.pipeline import sidecar, storyboard, units
from sora_cli.pipeline.expand import known_words, unknown_words
from sora_cli.runs import checkpoints, folders, replay, resume
from sora_cli.runs.run import take_up
from sora_cli.runtime import preferences
from sora_cli.weights import loose, manifest, records, store
from sora_cli.weights.load import dit
from sora_cli.weights.lora import Merger
from sora_cli.weights.lora_arguments import Lora, fold_lora_arguments, parse_lora
from sora_cli.weights.spiece import read_spiece
from sora_cli.weights.tensors import open_tensors
from tests.fuzz import mutations, seeds

TINY = Path(store.__file__).resolve().parents[1] / "assets" / "tiny"


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One kind of input.

    seeds: valid inputs. mutate: makes others of them. read: reads one; gets a file `input<suffix>`
    in a folder of its own. megabytes: the memory that reading one may take. sample: how many
    `make test` reads. own: only its owner can write such a file, and the paths in it are opened.
    """

    name: str
    seeds: Callable[[Path], list[bytes]]
    mutate: mutations.Mutation
    read: Callable[[Path], object]
    suffix: str = ""
    megabytes: int = 512
    sample: int = 40
    own: bool = False


def some(frames: Iterator[Any], count: int = 3) -> None:
    """The first few chunks."""
    for _ in islice(frames, count):
        pass


# ---------------------------------------------------------------- pictures and clips


def read_picture(path: Path) -> None:
    """As `animate` and `extend` read a picture, and its recipe."""
    with suppress(SoraError):
        recipes.read(path)
    with suppress(SoraError), path.open("rb") as file:
        if stills.kind(file.read(1 << 16)) == "still":
            reader.open_clip(path)
    image.read(path)


def read_clip(path: Path) -> None:
    """As the verbs on clips read one: facts, the first frames, the last, the recipe."""
    with suppress(SoraError):
        recipes.read(path)
    clip = reader.open_clip(path)
    assert clip.num_frames >= 1 and clip.fps > 0
    clip.head(2)
    clip.tail(2)


def read_packets(path: Path) -> None:
    """What our readers make of ffmpeg's lines, and of the times in them."""
    found, look = packets.Packets(), probe.Look()
    for line in path.read_bytes().decode("utf-8", "replace").splitlines():
        look(line)
        if size := found.take(line):
            packets.check_size(path, *size)
    ticks = found.shown() if found.pts else look.ticks()
    last = found.last_duration(found.tick) if found.pts else 0
    found.audio()
    if ticks is not None:
        timing.timing(ticks, found.tick, last, look.fps, 10_000)


def read_tags(path: Path) -> None:
    """A video's tags."""
    text = recipes.parse_ffmetadata(path.read_bytes().decode("utf-8", "replace"))
    recipes.parse(text.get(recipes.KEY, ""))


# ---------------------------------------------------------------- recipes and runs


def read_recipe(path: Path) -> None:
    """Everything that is done with a stranger's recipe before work begins."""
    folder = path.parent / "frames"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(path, folder / recipes.FILE_NAME)
    with suppress(UsageError):
        stills.folder_rate(folder)
    recipes.to_text({"parents": recipes.parents(path)})
    found = recipes.read(path)
    recipes.parents_of(found)
    call = replay.call_of(found, path)
    assert not any(isinstance(value, Path) for value in call.arguments.values())
    assert call.request.model == "tiny" and call.request.loras == ()
    with suppress(ValueError):
        call.start(target=None, observer=lambda event: None)


def read_run(path: Path) -> None:
    """A run's folder, as `runs list`, `runs show` and `resume` look at it."""
    from sora_cli.cli.runs import _facts

    folder = folders.runs_dir() / "20260101-000000-abcd"
    folder.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes()
    try:
        parts = json.loads(content)
        texts = {name: mutations.text_of(parts[name]) for name in ("recipe", "status")}
    except (ValueError, KeyError, TypeError, RecursionError):
        texts = {"recipe": content, "status": content[:60]}
    for name, text in texts.items():
        (folder / f"{name}.json").write_bytes(text)
    for stored in folders.stored():
        _facts(stored)
    folders.expire()
    run = take_up(folders.find(None))
    try:
        run.marks, run.memory_plan, run.outputs, run.made  # noqa: B018
        with suppress(UsageError):
            run.compare({"version": "1", "weights": "sha256:1", "torch": "2", "device": "cpu"})
        resume.rebuilt(run, output=None, force=False)
        resume.check_inputs(run)
        list(resume._made(run))
    finally:
        run.release()


def read_sidecar(path: Path) -> None:
    """Latents kept beside a video."""
    import numpy as np

    class Settings:
        width, height, fps = 64, 64, 8.0

    sidecar.load(path, Settings, np.zeros((2, 64, 64, 3), np.uint8), "sha256:0")  # type: ignore[arg-type]


# ---------------------------------------------------------------- texts that people write


def read_items(path: Path) -> None:
    """A batch: its items, their names, and the words each has on the command line."""
    from sora_cli import batch
    from sora_cli.cli.batch import _Work
    from sora_cli.cli.main import describe
    from sora_cli.cli.output import Output

    work = _work(_Work, Output())
    for item in batch.read_items(io.BytesIO(path.read_bytes())):
        if item.problem is not None:
            assert item.problem.hint
            continue
        try:
            output = batch.output_of(item, None)
            command, words = work._words(item, output)
            with work.root.make_context("sora", [], obj=Output(), resilient_parsing=True) as parent:
                command.make_context(item.verb, words, parent=parent)
            batch.find_made(item, output)
        except SoraError:
            continue
        except Exception as error:
            if describe(error)[0] != 2:
                raise


@cache
def _work(kind: Any, out: Any) -> Any:
    return kind(out, None, None, {}, False, False)


VALUES = (b"832x480", b"0.1:0.75", b"16:9", b"480p", b"1m30s", b"500ms", b"2.5",
          b"high:a.safetensors=0.5", b"--lora a 1 --lora b=2")  # fmt: skip


def read_value(path: Path) -> None:
    """Values of options, each by every parser of such words; then a whole request."""
    from sora_cli.pipeline.request import Request, resolve

    text = path.read_bytes().decode("utf-8", "surrogateescape")
    for parse in (
        units.parse_size, units.parse_aspect, units.parse_resolution, units.parse_interval,
        parse_lora,
    ):  # fmt: skip
        with suppress(UsageError):
            parse(text)
    fold_lora_arguments(text.split())
    known = {}
    with suppress(UsageError):
        known["duration"] = units.parse_duration(text)
    with suppress(UsageError):
        known["width"], known["height"] = units.parse_size(text)
    spec = store.locate("tiny").spec
    for change in (known, {"aspect": text}, {"resolution": text}, {"sampler": text}):
        with suppress(UsageError):
            resolve(Request(prompt=text or "a", **change), spec)


# ---------------------------------------------------------------- weights


def read_tensors(path: Path) -> None:
    """Every tensor of a checkpoint, as stored and as float32."""
    with closing(open_tensors(path)) as source:
        for name, info in source.tensors.items():
            assert source.read(name).shape == info.shape
            if not info.dtype.is_complex:
                source.read(name, dtype=torch.float32)


def read_checkpoint(path: Path) -> None:
    """A file as a model: recognised, built, filled."""
    folder = path.parent / "network"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"num_attention_heads": 1, "attention_head_dim": 12}')
    shutil.copyfile(path, folder / "model.safetensors")
    if loose.look(folder).kind == "transformer":
        with dit(folder, device="cpu", dtype=torch.float32):
            pass


def read_index(path: Path) -> None:
    """A folder of shards, by its index."""
    folder = path.parent / "shards"
    folder.mkdir(exist_ok=True)
    if not (folder / "model-1.safetensors").exists():
        (folder / "model-1.safetensors").write_bytes(seeds.checkpoints()[0])
    shutil.copyfile(path, folder / "model.safetensors.index.json")
    with closing(open_tensors(folder)):
        pass


def read_lora(path: Path) -> None:
    """A LoRA, merged into a transformer."""
    state = _state()
    with Merger({name: tuple(t.shape) for name, t in state.items()}, [Lora(path=path)]) as merger:
        for name in merger.names:
            merger.apply(name, state[name])
        merger.report()


@cache
def _state() -> dict[str, torch.Tensor]:
    return seeds.state()


CONFIGS = ("model_index.json", "transformer/config.json", "vae/config.json",
           "text_encoder/config.json", "scheduler/scheduler_config.json")  # fmt: skip


def configs(folder: Path) -> list[bytes]:
    """The JSON files of the embedded model, in one object."""
    return [json.dumps({name: json.loads((TINY / name).read_text()) for name in CONFIGS}).encode()]


def read_configs(path: Path) -> None:
    """A diffusers folder: its numbers, and what its networks would be."""
    folder = path.parent / "model"
    if not folder.exists():
        shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("SHA256SUMS", "language_model"))
    content = path.read_bytes()
    try:
        parts = json.loads(content)
        texts = {name: mutations.text_of(parts[name]) for name in CONFIGS}
    except (ValueError, KeyError, TypeError, RecursionError):
        texts = {CONFIGS[len(content) % len(CONFIGS)]: content}
    for name in CONFIGS:
        (folder / name).write_bytes(texts.get(name) or (TINY / name).read_bytes())
    installed = store.locate(str(folder))
    store.network_shapes(installed)


def read_record(path: Path) -> None:
    """What was pulled or imported, as it was written down."""
    records.folder().mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, records.folder() / "mine.json")
    for record in records.read_all():
        record.missing, record.size, record.commits  # noqa: B018


def read_vocabulary(path: Path) -> None:
    """A SentencePiece model, and a text cut by it."""
    read_spiece(path).encode(["a red ball é"], 8)


def read_words(path: Path) -> None:
    """A model's list of words."""
    folder = path.parent / "words"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(path, folder / "known_words.txt")
    unknown_words("a red ball bounces", known_words(folder))


def target(name: str, make: Callable[..., list[bytes]], *rest: Any, **more: Any) -> Target:
    """A row of the table; seeds that need no folder are given one all the same."""
    needs = make.__code__.co_argcount
    return Target(name=name, seeds=make if needs else lambda folder: make(), mutate=rest[0],
                  read=rest[1], **more)  # fmt: skip


TARGETS = {
    row.name: row
    for row in (
        target("picture", seeds.pictures, mutations.chunks, read_picture, megabytes=2048),
        target("webp", seeds.moving_webp, mutations.chunks, read_clip, suffix=".webp",
               megabytes=2048),
        target("video", seeds.videos, mutations.bits, read_clip, suffix=".mp4", megabytes=2048,
               sample=3),
        target("packets", seeds.packet_lines, mutations.bits, read_packets),
        target("tags", seeds.tags, mutations.bits, read_tags),
        target("recipe", seeds.recipe_texts, mutations.json_text, read_recipe, suffix=".json",
               sample=25),
        target("run", seeds.run_files, mutations.json_text, read_run, suffix=".json", sample=30,
               own=True),
        target("state", seeds.states, mutations.sealed, checkpoints.load, suffix=".safetensors"),
        target("sidecar", seeds.latents, mutations.safetensors, read_sidecar,
               suffix=".safetensors"),
        target("storyboard", seeds.boards, mutations.toml_text, storyboard.read, suffix=".toml"),
        target("preferences", seeds.preferences, mutations.toml_text, preferences.load_preferences,
               suffix=".toml"),
        target("manifest", seeds.manifests, mutations.toml_text, manifest.read_manifest,
               suffix=".toml", sample=15),
        target("batch", seeds.batches, mutations.json_lines, read_items, suffix=".jsonl",
               sample=5),
        target("values", lambda: list(VALUES), mutations.bits, read_value, sample=25),
        target("safetensors", seeds.checkpoints, mutations.safetensors, read_tensors,
               suffix=".safetensors"),
        target("model", seeds.checkpoints, mutations.safetensors, read_checkpoint,
               suffix=".safetensors", sample=30),
        target("index", seeds.checkpoint_index, mutations.json_text, read_index, suffix=".json"),
        target("pickle", seeds.pickles, mutations.archive, read_tensors, suffix=".pth", sample=40),
        target("gguf", seeds.ggufs, mutations.bits, read_tensors, suffix=".gguf"),
        target("lora", seeds.loras, mutations.safetensors, read_lora, suffix=".safetensors"),
        target("configs", configs, mutations.json_text, read_configs, suffix=".json", sample=25),
        target("record", seeds.record, mutations.json_text, read_record, suffix=".json"),
        target("spiece", seeds.words_of_spiece, mutations.bits, read_vocabulary, suffix=".model"),
        target("words", lambda: [b"a\nred\nball\n"], mutations.bits, read_words, suffix=".txt"),
    )
}  # fmt: skip
assert os.name == "posix", "the limits on memory and time are those of POSIX"
