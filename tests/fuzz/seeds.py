"""Small valid files of every kind that is read, made on the spot: what the mutations begin with."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save

from sora_cli.media import recipe as recipes
from sora_cli.models.dit import DiT, DiTConfig
from sora_cli.pipeline.request import Request
from sora_cli.pipeline.sampler import SamplerState
from sora_cli.pipeline.shortcuts import Computed
from sora_cli.runs import calls
from sora_cli.runs.checkpoints import save as save_state
from sora_cli.weights.manifest import manifest_path
from tests import clips

PROMPT = "a red ball bounces on the snow"
RECIPE: dict[str, Any] = {
    "schema": 1, "seed": 1, "model": "tiny", "size": [64, 64], "num_frames": 5, "fps": 8.0,
    "duration": 0.625, "prompt": PROMPT, "expanded_prompt": None, "negative_prompt": "", "steps": 2,
    "guidance_scale": 4.0, "guidance_scale_2": None, "shift": 3.0, "sampler": "euler",
    "sigma_grid": "diffusers", "loras": [], "device": "cpu", "dtype": "float32", "verb": "generate",
    "memory_plan": "all of it", "weights": "sha256:0", "version": "0.1.0", "crf": 18,
    "timings": {"denoise": 0.5},
}  # fmt: skip
ANIMATED = {
    **RECIPE, "verb": "animate",
    "arguments": {"image": {"name": "red.png", "sha256": "0" * 64}, "last": None, "fit": "crop"},
    "parents": [{"path": "red.png", "sha256": "0" * 64, "recipe": {**RECIPE, "parents": []}}],
}  # fmt: skip
EXTENDED = {
    **ANIMATED, "verb": "extend", "inputs": {"reference 1": {"name": "red.png", "sha256": "0"}},
    "arguments": {"clip": {"name": "a.mkv", "sha256": "0"}, "by": 1.0, "to": None},
}  # fmt: skip
SMALL = DiTConfig(
    num_layers=1, hidden_size=12, num_heads=1, ffn_dim=16, in_channels=4, out_channels=4,
    text_dim=8, text_len=8, freq_dim=8,
)  # fmt: skip


def recipe_texts() -> list[bytes]:
    """Recipes of three verbs, one under its key."""
    return [json.dumps(r).encode() for r in (RECIPE, ANIMATED, EXTENDED, {recipes.KEY: RECIPE})]


def pictures() -> list[bytes]:
    """Each kind of picture that is read, with what else such files carry."""
    rgb = clips.moving(1, 16, 20)[0]
    image = Image.fromarray(rgb)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    text = PngInfo()
    text.add_itxt(recipes.KEY, recipes.to_text(RECIPE))
    deep = Image.fromarray((rgb[..., 0].astype(np.uint16) << 8) + 7)
    shapes: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (image, "PNG", {"pnginfo": text}), (image.convert("P"), "PNG", {"transparency": 3}),
        (deep, "PNG", {}), (image.convert("LA"), "PNG", {"icc_profile": profile}),
        (image, "JPEG", {"exif": exif, "icc_profile": profile}),
        (image.convert("CMYK"), "JPEG", {}),
        (image, "JPEG", {"progressive": True}), (image, "WEBP", {"exif": recipes.exif(RECIPE)}),
        (image.convert("RGBA"), "WEBP", {"lossless": True}), (image, "GIF", {}),
        (image, "BMP", {}),
        (image, "TIFF", {"compression": "tiff_lzw"}), (image.convert("CMYK"), "TIFF", {}),
        (image, "PPM", {}), (image, "AVIF", {}),
    ]  # fmt: skip
    return [_saved(*shape) for shape in shapes]


def _saved(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def moving_webp() -> list[bytes]:
    """Animated WebP, lossy and not, with and without transparency."""
    frames = [Image.fromarray(frame) for frame in clips.moving(4, 16, 20)]
    clear = [frame.convert("RGBA") for frame in frames]
    for frame in clear:
        frame.putalpha(128)
    how = {"save_all": True, "duration": [40, 90, 5, 300]}
    return [
        _saved(some[0], "WEBP", {**how, "append_images": some[1:], "lossless": lossless})
        for some in (frames, clear)
        for lossless in (True, False)
    ]


def videos(folder: Path) -> list[bytes]:
    """Every container of ours, and some of others', some with sound, a rotation, a recipe."""
    frames = clips.moving(6, 16, 32)
    tag = folder / "tag.txt"
    tag.write_text(recipes.ffmetadata(ANIMATED), encoding="utf-8")
    sound = ["-f", "lavfi", "-i", "sine=duration=0.5"]
    described = ["-i", str(tag), "-map_metadata", "1", "-movflags", "use_metadata_tags"]
    kinds: list[tuple[str, list[str]]] = [
        ("a.mp4", [*described, *clips.x264(3)]), ("b.mp4", [*sound, *clips.x264(), "-shortest"]),
        ("c.mkv", [*described, "-c:v", "ffv1"]), ("d.webm", ["-c:v", "libvpx-vp9", "-crf", "50"]),
        ("e.gif", []), ("f.apng", []), ("g.avi", ["-c:v", "mjpeg"]),
        ("h.ts", ["-c:v", "mpeg2video"]),
        ("i.mov", ["-c:v", "prores_ks"]), ("j.y4m", ["-pix_fmt", "yuv420p"]), ("k.flv", []),
        ("l.ogv", []),
    ]  # fmt: skip
    return [clips.made(folder / name, frames, *how).read_bytes() for name, how in kinds]


def packet_lines() -> list[bytes]:
    """What ffmpeg's framecrc says of a clip, and the log of its filter showinfo."""
    lines = [
        "#format: frame checksums", "#tb 0: 1/10240", "#media_type 0: video", "#codec_id 0: h264",
        "#dimensions 0: 48x32", "#sar 0: 1/1", "#tb 1: 1/44100", "#codec_id 1: aac",
        "0,      -2048,          0,     1024,      857, 0x4d1ea1f8",
        "1,       -1024,      -1024,     1024,       23, 0x6b3a0a5c, F=0x5",
        "0,      -1024,       4096,     1024,       88, 0x5f3c2b1a, F=0x0",
        "0,          0,       2048,     1024,       61, 0x1f5a1f42, F=0x0",
    ]  # fmt: skip
    log = [
        "[Parsed_showinfo_0 @ 0x55] config in time_base: 1/10240, frame_rate: 10/1",
        "[Parsed_showinfo_0 @ 0x55] n:   0 pts:      0 pts_time:0       duration:   1024 "
        "duration_time:0.1 fmt:yuv420p cl:left sar:1/1 s:48x32 i:P iskey:1 type:I checksum:0",
        "[Parsed_showinfo_0 @ 0x55] color_range:tv color_space:bt709 color_primaries:bt709 "
        "color_trc:bt709",
        "    displaymatrix: rotation of -90.00 degrees",
        "[Parsed_showinfo_0 @ 0x55] n:   1 pts:   1024 pts_time:0.1 fmt:rgba sar:4/3 s:48x32 i:T",
    ]
    return ["\n".join(lines).encode(), "\n".join(log).encode()]


def tags() -> list[bytes]:
    """ffmetadata with a recipe, sections and comments."""
    text = recipes.ffmetadata(ANIMATED) + "title=a\\=b\\\nc\n; no\n[STREAM]\nx=y\n"
    return [text.encode(), b';FFMETADATA1\nSORA_RECIPE={\\"schema\\": 1}\n']


BOARD = """\
size = "64x64"
fps = 8
seed = 7
model = "tiny"
negative_prompt = "grey"
duration = "9s"

[[shot]]
at = "0s"
prompt = "a red ball rolls left on grass"
last_image = "house.png"

[[shot]]
at = "3s"
join = "cut"
prompt = "a red ball bounces on grass"

[[shot]]
at = "5s"
image = "house.png"
join = "blend"
over = 0.5
prompt = "a house in the snow"
duration = 1.5

[[shot]]
clip = "car.mp4"
from = "1s"
to = "3s"
join = "cut"
"""
SHOTS = 'shot = [{prompt = "a ball", duration = "2s"}, {clip = "car.mp4"}]\n'
ITEMS = [
    {"prompt": PROMPT, "steps": 2, "size": "64x64", "seed": 3, "output": "ball.mp4"},
    {"verb": "image", "prompt": "a house", "num_images": 2, "guidance_scale": 2.5},
    {"verb": "animate", "image": "red.png", "prompt": "it moves", "lora": ["a=0.5", "b"]},
    {"verb": "edit", "clip": "a.mp4", "prompt": "night", "strength": 0.5, "from": "0s", "to": "1s"},
]  # fmt: skip


def batches() -> list[bytes]:
    """A batch of four verbs."""
    return [b"\n".join(json.dumps(item).encode() for item in ITEMS)]


def boards() -> list[bytes]:
    """Two storyboards."""
    return [BOARD.encode(), SHOTS.encode()]


def preferences() -> list[bytes]:
    """A config.toml."""
    return [b'model = "tiny"\n', b'# mine\nmodel = "wan2.1-t2v-1.3b"\n']


def manifests() -> list[bytes]:
    """The manifest."""
    return [manifest_path().read_bytes()]


# ---------------------------------------------------------------- weights


def state() -> dict[str, torch.Tensor]:
    """A transformer's parameters, random."""
    generator = torch.Generator().manual_seed(1)
    shapes = {name: tensor.shape for name, tensor in DiT(SMALL).state_dict().items()}
    return {name: torch.randn(s, generator=generator).bfloat16() for name, s in shapes.items()}


def checkpoints() -> list[bytes]:
    """A transformer, and a few tensors of other kinds, as safetensors."""
    few = {
        "a": torch.arange(6).view(2, 3), "b.weight": torch.ones(3, dtype=torch.float8_e4m3fn),
        "scale": torch.tensor(2.0), "empty": torch.zeros(0, 4),
        "model.diffusion_model.c": torch.ones(1),
    }  # fmt: skip
    return [save(few, {"format": "pt"}), save(state())]


def pickles() -> list[bytes]:
    """`.pth` files, of the new and the old form."""
    few = {"a": torch.arange(6).view(2, 3), "b": torch.ones(4).bfloat16()[::2], "n": 3}
    made = []
    for content, new in ((few, True), ({"state_dict": few, "epoch": 3}, True), (few, False)):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=new)
        made.append(file.getvalue())
    return made


def ggufs(folder: Path) -> list[bytes]:
    """A GGUF file with a plain and a quantised tensor and a list of words."""
    import gguf

    writer = gguf.GGUFWriter(folder / "m.gguf", "wan")
    writer.add_token_list(["a", "red", "ball"])
    writer.add_array("comfy.gguf.orig_shape.a.weight", (2, 4, 8))
    writer.add_tensor("a.weight", np.ones((2, 32), np.float32))
    blocks = gguf.quants.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("b.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [(folder / "m.gguf").read_bytes()]


def loras() -> list[bytes]:
    """LoRAs of three dialects for `state`."""
    up, down = torch.ones(12, 2), torch.ones(2, 12)
    kohya = {
        "lora_unet_blocks_0_self_attn_q.lora_up.weight": up,
        "lora_unet_blocks_0_self_attn_q.lora_down.weight": down,
        "lora_unet_blocks_0_self_attn_q.alpha": torch.tensor(1.0),
    }
    peft = {
        "transformer.blocks.0.attn1.to_q.lora_A.weight": down,
        "transformer.blocks.0.attn1.to_q.lora_B.weight": up,
    }
    full = {"diffusion_model.blocks.0.self_attn.k.diff": torch.ones(12, 12),
            "diffusion_model.blocks.0.self_attn.k.diff_b": torch.ones(12)}  # fmt: skip
    adapter = json.dumps({"transformer.lora_alpha": 4, "transformer.alpha_pattern": {"to_q": 2}})
    return [save(kohya), save(peft, {"lora_adapter_metadata": adapter}), save(full)]


def words_of_spiece() -> list[bytes]:
    """A SentencePiece model of a few pieces, written field by field."""

    def field(number: int, value: bytes | int) -> bytes:
        if isinstance(value, int):
            return bytes([number << 3 & 0x7F | (0x80 if number > 15 else 0)] + (
                [number >> 4] if number > 15 else []) + [value])  # fmt: skip
        return bytes([number << 3 | 2, len(value)]) + value

    out = b""
    for piece, kind in (("<pad>", 3), ("</s>", 3), ("<unk>", 2), ("▁a", 1), ("▁red", 1), ("b", 1)):
        score = b"\x15" + struct.pack("<f", -1.0)
        out += field(1, field(1, piece.encode()) + score + field(3, kind))
    out += field(2, field(3, 1) + field(40, 2))
    return [out + field(3, field(1, b"identity"))]


def latents() -> list[bytes]:
    """A sidecar of latents."""
    facts = {"schema": "1", "weights": "sha256:0", "size": "64x64", "fps": "8"}
    return [save({"latents": torch.ones(4, 1, 2, 2), "last": torch.zeros(64, 64, 3).byte()}, facts)]


def run_files(folder: Path) -> list[bytes]:
    """recipe.json and status.json of a run, in one object."""
    call = calls.Call(verb="generate", arguments={"request": Request(prompt="a", seed=1)})
    facts = {"version": "1", "weights": "sha256:0", "torch": "2", "memory_plan": "all"}
    recipe = {
        "schema": 1, **call.to_json(), "inputs": {"image": {"path": "none.png", "sha256": "0"}},
        "seeds": [1, 2], "outputs": ["a.mp4", "b.mp4"], "cwd": str(folder), "facts": facts,
        "options": {"crf": 18, "force": False, "keep_run": False, "item": None},
    }  # fmt: skip
    status = {"state": "interrupted", "created": 1.0, "updated": 2.0, "pid": 7, "step": 1,
              "made": {"1": "a.mp4"}, "error": {"message": "x", "hint": None}}  # fmt: skip
    return [json.dumps({"recipe": recipe, "status": status}).encode()]


def states(folder: Path) -> list[bytes]:
    """States of the sampler, with and without a cached step."""
    state = SamplerState(
        latents=torch.ones(1, 4, 1, 2, 2), step=1, corrected=None, denoised=(), seed=1
    )
    cached = Computed(velocity=state.latents, slope=state.latents, sigma=0.5, skipped=1)
    paths = [folder / "plain", folder / "cached"]
    save_state(paths[0], state)
    save_state(paths[1], replace(state, computed=cached))
    return [path.read_bytes() for path in paths]


def record(folder: Path) -> list[bytes]:
    """A record of two files."""
    file = {"path": "a/b.safetensors", "size": 3, "sha256": "0", "repository": "a/b", "commit": "c",
            "file": "b", "damaged": False}  # fmt: skip
    content = {"schema": 1, "name": "mine", "kind": "model", "parts": {"vae": "a"},
               "files": [file, file], "imported": None}  # fmt: skip
    return [json.dumps(content).encode()]


def checkpoint_index(folder: Path) -> list[bytes]:
    """An index of shards."""
    places = dict.fromkeys(("a", "b.weight", "scale"), "model-1.safetensors")
    return [json.dumps({"metadata": {"total_size": 7}, "weight_map": places}).encode()]
