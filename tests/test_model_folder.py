"""`-m FOLDER`: what is read from a folder, and what is said about one that cannot be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sora_cli.cli.main import main
from sora_cli.errors import WeightsError
from sora_cli.models.specs import FAMILIES
from sora_cli.weights import load, store
from tests import wan_folders

Capture = pytest.CaptureFixture[str]
DIT = "transformer/diffusion_pytorch_model.safetensors"
NETWORKS: dict[str, Any] = {
    "transformer": load.dit,
    "vae": load.vae,
    "text_encoder": load.text_encoder,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Wan 2.1 folder as diffusers saves it; not to be changed."""
    return wan_folders.save(wan_folders.wan21(), tmp_path_factory.mktemp("saved") / "wan")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(saved, tmp_path / "wan"))


def edit(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; `...` removes one."""
    content = json.loads(path.read_text()) | values
    content = {key: value for key, value in content.items() if value is not ...}
    path.write_text(json.dumps(content))


def generate(folder: Path) -> int:
    target = folder.parent / "out.mkv"
    small = ["--size", "32x32", "--num-frames", "1", "--steps", "1", "--no-expand"]
    words = ["generate", "a red ball", "-m", str(folder), *small, "--device", "cpu", "--seed", "1"]
    code = main([*words, "-o", str(target)])
    assert target.exists() == (code == 0)
    return code


def load_everything(folder: Path) -> None:
    with ExitStack() as networks:
        for network in NETWORKS.values():
            networks.enter_context(network(folder, device="cpu", dtype=torch.float32))


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    ("scheduler", "sampler", "shift"),
    [
        (wan_folders.unipc(7.0), "unipc", 7.0),
        (wan_folders.euler(2.5), "euler", 2.5),
    ],
    ids=["UniPC", "Euler"],
)
def test_the_scheduler_chooses_sampler_and_shift(
    scheduler: Any, sampler: str, shift: float, folder: Path
) -> None:
    scheduler.save_pretrained(folder / "scheduler")
    spec = store.locate(str(folder)).spec
    assert (spec.sampler, spec.shift) == (sampler, shift)


def test_an_unknown_scheduler_leaves_the_familys_sampler(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "Another"}')
    spec, family = store.locate(str(folder)).spec, FAMILIES["wan2.1-t2v"]
    assert (spec.sampler, spec.shift) == (family.sampler, family.shift)


def test_both_families_are_told_apart(saved: Path, tmp_path: Path) -> None:
    spec = store.locate(str(saved)).spec
    assert (spec.family, spec.conditioning) == ("wan2.1-t2v", "replace")
    assert (spec.vae_scale_factors, spec.size_multiple, spec.text_len) == ((4, 8, 8), 16, 512)
    folder = wan_folders.save(wan_folders.wan22(), tmp_path / "ti2v")
    spec = store.locate(str(folder)).spec
    assert (spec.family, spec.conditioning) == ("wan2.2-ti2v", "tokens")
    assert (spec.vae_scale_factors, spec.size_multiple, spec.name) == ((4, 16, 16), 32, "ti2v")


def test_keys_that_only_the_config_has_are_no_matter(folder: Path) -> None:
    """As in a public mirror of TI2V-5B, whose config speaks of an image branch it lacks."""
    edit(folder / "transformer" / "config.json", image_dim=1280, added_kv_proj_dim=5120)
    load_everything(folder)


def test_a_tokenizer_saved_after_use_serves(folder: Path) -> None:
    tokenizer = wan_folders.wan21().tokenizer
    tokenizer(["a"], padding="max_length", max_length=9, truncation=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    assert '"max_length": 9' in (folder / "tokenizer" / "tokenizer.json").read_text()
    ids, mask = load.tokenizer(folder).encode(["a red ball on the snow " * 3], 12)
    assert mask.sum() == 12 and ids[0, -1] == 1


# ---------------------------------------------------------------- what is refused


def broken_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def image_to_video(folder: Path) -> None:
    edit(folder / "model_index.json", _class_name="WanImageToVideoPipeline")


def two_experts(folder: Path) -> None:
    edit(folder / "model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"])


def no_text_encoder(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")


def no_config(folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / DIT).unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()


def missing_shard(folder: Path) -> None:
    index = {"weight_map": {"proj_out.weight": "part-00002.safetensors"}}
    (folder / "transformer" / "a.safetensors.index.json").write_text(json.dumps(index))


def index_without_map(folder: Path) -> None:
    (folder / "transformer" / "a.safetensors.index.json").write_text("{}")


def truncated(folder: Path) -> None:
    content = (folder / DIT).read_bytes()
    (folder / DIT).write_bytes(content[:-100])


def empty(folder: Path) -> None:
    (folder / DIT).write_bytes(b"")


def flipped(folder: Path) -> None:
    content = bytearray((folder / DIT).read_bytes())
    content[8] ^= 1  # the header's opening brace
    (folder / DIT).write_bytes(content)


def flipped_name(folder: Path) -> None:
    content = (folder / DIT).read_bytes()
    (folder / DIT).write_bytes(content.replace(b'"blocks.0.attn1', b'"blocks.0.attn3', 1))


def more_channels(folder: Path) -> None:
    edit(folder / "transformer" / "config.json", in_channels=36)


def other_text(folder: Path) -> None:
    edit(folder / "text_encoder" / "config.json", d_model=48)


def no_shift(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", flow_shift=-1.0)


REFUSED: list[tuple[Callable[[Path], None], int, str]] = [
    (broken_index, 3, "model_index.json cannot be read"),
    (image_to_video, 3, "has 16 latent channels, vae/ gives 36"),
    (two_experts, 3, "has no transformer_2/"),
    (no_text_encoder, 3, "has no text_encoder/"),
    (no_config, 3, "vae/config.json is missing"),
    (no_weights, 3, "no safetensors in"),
    (no_tokenizer, 3, "cannot read the tokenizer"),
    (missing_shard, 3, "part-00002.safetensors is missing"),
    (index_without_map, 3, "a.safetensors.index.json cannot be used: it lacks 'weight_map'"),
    (truncated, 3, "is damaged or not a safetensors file"),
    (empty, 3, "is damaged or not a safetensors file"),
    (flipped, 3, "is damaged or not a safetensors file"),
    (flipped_name, 3, "blocks.0.attn3."),
    (more_channels, 3, "transformer/ has 36 latent channels, vae/ gives 16"),
    (other_text, 3, "transformer/ has 32 wide text, text_encoder/ gives 48"),
    (no_shift, 3, "the scheduler's shift is -1.0"),
]


@pytest.mark.parametrize(
    ("damage", "code", "words"), REFUSED, ids=[damage.__name__ for damage, _, _ in REFUSED]
)
def test_a_folder_that_cannot_be_used_says_why(
    damage: Callable[[Path], None], code: int, words: str, folder: Path, capsys: Capture
) -> None:
    damage(folder)
    assert generate(folder) == code
    captured = capsys.readouterr()
    (error,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert words in error.replace("\\", "/") and len(error) < 500
    assert "hint: " in captured.err and captured.out == ""


def test_the_whole_folder_works(folder: Path) -> None:
    assert generate(folder) == 0


def test_shapes_win_over_a_config_that_contradicts_them(folder: Path) -> None:
    """A public mirror's config is wrong, its weights are not."""
    edit(folder / "transformer" / "config.json", num_layers=4, ffn_dim=140)
    edit(folder / "vae" / "config.json", base_dim=12)
    assert generate(folder) == 0


def test_a_folder_needs_no_index_of_its_model(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    assert generate(folder) == 0


def test_a_picture_is_refused_before_any_weights_are_read(folder: Path, capsys: Capture) -> None:
    (folder / "picture.png").touch()
    assert main(["animate", str(folder / "picture.png"), "-m", str(folder), "-o", "a.mkv"]) == 2
    told = capsys.readouterr().err
    assert "error: wan cannot start from a picture" in told
    assert "hint: a model that can: -m tiny or -m wan2.1-i2v-14b-480p" in told


# ---------------------------------------------------------------- chance


def test_no_flipped_bit_of_a_header_escapes(folder: Path) -> None:
    """It is an error in our words, or harmless (in the metadata); never a crash."""
    path = folder / DIT
    tensors = {name: t for name, t in load_file(path).items() if not name.startswith("blocks.2")}
    edit(folder / "transformer" / "config.json", num_layers=2)
    save_file(tensors, path, metadata={"format": "pt"})
    content = path.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    generator = np.random.default_rng(3)
    refused = 0
    for _ in range(60):
        broken = bytearray(content)
        broken[generator.integers(length)] ^= 1 << int(generator.integers(8))
        path.write_bytes(broken)
        try:
            with load.dit(folder, device="cpu", dtype=torch.float32):
                pass
        except WeightsError as error:
            assert "\n" not in error.message
            refused += 1
    assert refused > 50
