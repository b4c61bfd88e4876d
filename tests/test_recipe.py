"""The recipe: written into every format and read back; a stranger's file does no harm."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_cli.errors import UsageError
from sora_cli.media import image, video
from sora_cli.media import recipe as recipes

SCHEMA = Path(__file__).parents[1] / "docs/reference/recipe.schema.json"
RECIPE = {
    "schema": 1,
    "seed": 7,
    "model": "tiny",
    "size": [32, 16],
    "num_frames": 2,
    "fps": 16,
    "duration": 0.125,
    "prompt": 'a "red" ball; x=1 # 5\\6\nnext line\r\ttab \u2028 雪 🏀 \udc80 [STREAM] \x00 </s>',
    "expanded_prompt": "[CHAPTER]\n;not a comment\nKEY=value\\",
    "negative_prompt": None,
    "steps": 20,
    "guidance_scale": 5.0,
    "shift": 3.0,
    "sampler": "unipc",
    "sigma_grid": "diffusers",
    "device": "cpu",
    "dtype": "float32",
    "weights": "sha256:0123",
    "version": "0.1.0",
    "timings": {"denoise": 1.25},
    "peak_memory": 123456789,
}
LONG = RECIPE | {"prompt": "word " * 10_000, "expanded_prompt": "雪 word " * 10_000}
VIDEOS = [".mp4", ".webm", ".gif", ".webp", ".mkv"]


def frames(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 32, 3), dtype=np.uint8)


def made(path: Path, recipe: dict | None, count: int = 2) -> Path:
    if path.suffix in (".png", ".jpg", ".jpeg"):
        image.write(path, frames()[0], recipe=recipe)
    else:
        video.write(path, iter([frames(count)]), width=32, height=16, fps=16, recipe=recipe)
    return path


@pytest.mark.parametrize("name", [*(f"a{s}" for s in VIDEOS), "frames", "a.png", "a.jpg", "a.jpeg"])
@pytest.mark.parametrize("recipe", [RECIPE, LONG], ids=["odd", "long"])
def test_comes_back_from_every_format(tmp_path: Path, name: str, recipe: dict) -> None:
    assert recipes.read(made(tmp_path / name, recipe)) == recipe


def test_comes_back_from_one_frame_and_from_an_image(tmp_path: Path) -> None:
    for suffix in VIDEOS:
        assert recipes.read(made(tmp_path / f"a{suffix}", RECIPE, count=1)) == RECIPE
    image.write(tmp_path / "image.webp", frames()[0], recipe=RECIPE)
    assert recipes.read(tmp_path / "image.webp") == RECIPE


def test_the_content_tells_the_kind_not_the_name(tmp_path: Path) -> None:
    path = made(tmp_path / "a.mp4", RECIPE).rename(tmp_path / "odd:name,-i 100%d.png")
    assert recipes.read(path) == RECIPE
    assert recipes.read(made(tmp_path / "f", RECIPE) / "recipe.json") == RECIPE


def test_files_stay_readable_for_others(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a.gif", "a.webp", "a.png", "a.jpg"):
        with Image.open(made(tmp_path / name, LONG)) as picture:
            assert picture.size == (32, 16)
            if name in ("a.gif", "a.webp"):
                assert picture.n_frames == 2
            picture.load()


@pytest.mark.parametrize("name", [*(f"a{s}" for s in VIDEOS), "frames", "a.png", "a.jpg"])
def test_none_is_an_error_with_a_hint(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="carries no recipe") as caught:
        recipes.read(made(tmp_path / name, None))
    assert caught.value.hint


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        recipes.read(tmp_path / "none.mp4")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b'{"schema": "1"}',
        b'{"schema": true}',
        b'{"schema": 1, "seed": NaN}',
        b'{"a":' * 50_000,
        b"[" * 100_000,
        b'{"schema": 1, "prompt": "' + b"x" * recipes.MAX_BYTES + b'"}',
        b"\x89PNG\r\n\x1a\nrubbish",
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 0xFFFFFFF0) + b"iTXt",
        b"\xff\xd8\xff\xe1\xff\xffExif\0\0II*\0\xff\xff\xff\xff",
        b"GIF89a" + b"\xff" * 7,
        b"GIF89a\0\0\0\0\0\0\0\x21\xfe\xff{",
        b"RIFF\0\0\0\0WEBPVP8X",
        b"\0\0\0\x18ftypmp42" + b"\xff" * 100,
        b"\x1aE\xdf\xa3" + b"\xff" * 100,
        b"GIF89a\0\0\0\0\0\0\0" + b"\x21\xfe\0" * 100_000,
    ],
)
def test_a_strangers_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="carries no recipe"):
        recipes.read(path)


def test_a_bomb_in_a_text_chunk_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    bomb = chunk(b"iTXt", b"sora_recipe\0\1\0\0\0" + zlib.compress(b" " * (64 << 20)))
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + bomb + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(UsageError, match="carries no recipe"):
        recipes.read(path)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=4))
def test_texts_come_back(fields: dict[str, str]) -> None:
    recipe = fields | {"schema": 1}
    tags = recipes.parse_ffmetadata(recipes.ffmetadata(recipe))
    assert recipes.parse(tags[recipes.KEY]) == recipe
    assert recipes.parse(recipes.to_text({recipes.KEY: recipe}).encode()) == recipe


def test_ffmetadata_sections_and_comments() -> None:
    text = ";FFMETADATA1\n#c=1\nSORA\\=X=a\\\nb\\;=c\nempty=\nbare\n[STREAM]\ninside=1\n"
    assert recipes.parse_ffmetadata(text) == {"sora=x": "a\nb;=c", "empty": ""}


def test_schema() -> None:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(RECIPE)
    validator.validate(RECIPE | {"path": "a.mp4", "peak_memory": None, "later": [1]})
    wrong = [{"seed": -1}, {"size": [1]}, {"size": [1, 2, 3]}, {"fps": 0}, {"schema": 2}]
    wrong += [{"timings": {"all": -1}}, {"steps": 2.5}, {"prompt": None}]
    assert not any(validator.is_valid(RECIPE | change) for change in wrong)
    for field in schema["required"]:
        assert not validator.is_valid({k: v for k, v in RECIPE.items() if k != field})


def test_importing_it_is_cheap() -> None:
    code = "import sys, sora_cli.media.recipe; print({'torch', 'numpy', 'PIL'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


# ---------------------------------------------------------------- what it was made from


def test_parents_are_named_hashed_and_carried(tmp_path: Path) -> None:
    clip, plain = made(tmp_path / "a.mp4", RECIPE), made(tmp_path / "b.png", None)
    folder = made(tmp_path / "frames", RECIPE)
    found = recipes.parents(clip, plain, folder)
    assert [parent["path"] for parent in found] == ["a.mp4", "b.png", "frames"]
    assert [parent["recipe"] for parent in found] == [RECIPE, None, RECIPE]
    assert found[0]["sha256"] == hashlib.sha256(clip.read_bytes()).hexdigest()
    before = found[2]["sha256"]
    (folder / "000001.png").write_bytes(b"other")
    assert recipes.parents(folder)[0]["sha256"] != before
    child = RECIPE | {"parents": found}
    assert recipes.read(made(tmp_path / "c.mp4", child)) == child
    assert recipes.parents_of(child) == found
    with pytest.raises(UsageError, match="cannot read"):
        recipes.parents(tmp_path / "none.mp4")


def test_ancestors_stay_bounded(tmp_path: Path) -> None:
    """Each generation brings those before it; the oldest lose their recipes first."""
    path = tmp_path / "0.json"
    path.write_text(recipes.to_text(RECIPE | {"prompt": "x" * 30_000}))
    for number in range(1, 30):
        child = {"schema": 1, "prompt": "x" * 30_000, "parents": recipes.parents(path)}
        path = tmp_path / f"{number}.json"
        path.write_text(recipes.to_text(child))
    text = path.read_text()
    assert 150_000 < len(text) < recipes.MAX_ANCESTRY + 31_000
    recipe, depth = recipes.read(path), 0
    while older := recipes.parents_of(recipe):
        depth += 1
        assert older[0]["path"] == f"{29 - depth}.json" and len(older[0]["sha256"]) == 64
        if (recipe := older[0]["recipe"]) is None:
            break
    assert depth >= 5 and recipe is None


@pytest.mark.parametrize("parents", [7, "x", [1, None, {}, {"sha256": "0"}], {"a": 1}])
def test_a_strangers_parents_do_no_harm(tmp_path: Path, parents: object) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"schema": 1, "parents": parents}))
    assert all(isinstance(parent, dict) for parent in recipes.parents_of(recipes.read(path)))
    assert recipes.parents(path)[0]["path"] == "a.json"


def test_parents_nested_without_end_are_cut(tmp_path: Path) -> None:
    text = '{"schema": 1}'
    for _ in range(300):
        text = f'{{"schema": 1, "parents": [{{"sha256": "0", "recipe": {text}}}]}}'
    (tmp_path / "a.json").write_text(text)
    assert len(recipes.to_text({"parents": recipes.parents(tmp_path / "a.json")})) < 5000
