"""Finding a model: by name, folder or file; what it is, what it lacks, what is recorded of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sora_cli.cli.main import main
from sora_cli.errors import SoraError, UsageError, WeightsError
from sora_cli.models.dit import DiT, DiTConfig
from sora_cli.models.specs import FAMILIES
from sora_cli.models.text_encoder import TextEncoder, TextEncoderConfig
from sora_cli.models.vae import VAE, VAEConfig
from sora_cli.runtime import costs
from sora_cli.runtime.shapes import JobShape
from sora_cli.weights import configs, folders, local, records, store
from sora_cli.weights.lora_arguments import Lora

Capture = pytest.CaptureFixture[str]
TEXT = 32
DIT = DiTConfig(
    num_layers=2, hidden_size=128, num_heads=1, ffn_dim=96, in_channels=16, out_channels=16,
    text_dim=TEXT, freq_dim=32,
)  # fmt: skip
VAE21 = VAEConfig(
    z_dim=16, encoder_dim=4, decoder_dim=4, dim_mult=(1, 2, 4, 4), num_res_blocks=1,
    temporal_downsample=(False, True, True), residual=False,
    latents_mean=configs.WAN21_MEAN, latents_std=configs.WAN21_STD,
)  # fmt: skip
UMT5 = TextEncoderConfig(
    vocab_size=20, hidden_size=TEXT, num_layers=1, num_heads=2, head_dim=16, ffn_dim=24
)


@lru_cache
def weights(config: Any) -> dict[str, torch.Tensor]:
    """Random weights of a small network, under the original names."""
    kinds: dict[type, Callable[[Any], nn.Module]] = {
        DiTConfig: DiT, VAEConfig: VAE, TextEncoderConfig: TextEncoder,
    }  # fmt: skip
    with torch.device("meta"):
        network = kinds[type(config)](config)
    return {name: torch.randn(t.shape) for name, t in network.state_dict().items()}


def save(config: Any, path: Path, prefix: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {prefix + name: tensor for name, tensor in weights(config).items()}
    torch.save(tensors, path) if path.suffix == ".pth" else save_file(tensors, path)
    return path


def save_tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Single files, each in a folder of its own, named after nothing."""
    return {
        "transformer": save(DIT, tmp_path / "a" / "1.safetensors", "model.diffusion_model."),
        "vae": save(VAE21, tmp_path / "b" / "2.safetensors"),
        "text_encoder": save(UMT5, tmp_path / "c" / "3.safetensors"),
        "tokenizer": save_tokenizer(tmp_path / "c" / "tokenizer"),
    }


def original_folder(folder: Path) -> Path:
    """As the publisher's own repositories are laid out."""
    save(DIT, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"dim": 128, "num_heads": 2, "eps": 1e-6}))
    save(VAE21, folder / "Wan2.1_VAE.pth")
    save(UMT5, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    save_tokenizer(folder / "google" / "umt5-xxl")
    return folder


# ---------------------------------------------------------------- diffusers folders

PIPELINES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"_class_name": "WanPipeline"}, {}, "wan2.1-t2v"),
    ({"_class_name": "WanPipeline", "expand_timesteps": True}, {}, "wan2.2-ti2v"),
    ({"_class_name": "WanImageToVideoPipeline", "expand_timesteps": True}, {}, "wan2.2-ti2v"),
    ({"_class_name": "WanVACEPipeline"}, {"vace_layers": [0]}, "wan2.1-vace"),
    (
        {"_class_name": "WanImageToVideoPipeline", "image_encoder": ["transformers", "C"]},
        {"image_dim": 1280, "in_channels": 36},
        "wan2.1-i2v",
    ),
    (
        {"_class_name": "WanImageToVideoPipeline", "image_encoder": ["transformers", "C"]},
        {"image_dim": 1280, "in_channels": 36, "pos_embed_seq_len": 514},
        "wan2.1-flf2v",
    ),
    (
        {"_class_name": "WanPipeline", "transformer_2": ["d", "W"], "boundary_ratio": 0.7},
        {},
        "wan2.2-t2v-a14b",
    ),
    (
        {"_class_name": "WanImageToVideoPipeline", "transformer_2": ["d", "W"]},
        {"in_channels": 36},
        "wan2.2-i2v-a14b",
    ),
]


def diffusers_folder(folder: Path, index: dict[str, Any], transformer: dict[str, Any]) -> Path:
    """The JSON files of a diffusers folder: all that has to be read to know what it is."""
    dit = {"in_channels": 16, "out_channels": 16, "text_dim": 32, "patch_size": [1, 2, 2]}
    content = {
        "transformer/config.json": {**dit, **transformer},
        "transformer_2/config.json": {**dit, **transformer},
        "vae/config.json": {
            "z_dim": 16, "dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]
        },
        "text_encoder/config.json": {"d_model": 32},
        "image_encoder/config.json": {},
        "tokenizer/tokenizer.json": {},
        "scheduler/scheduler_config.json": {
            "_class_name": "UniPCMultistepScheduler", "flow_shift": 2.5
        },
        "model_index.json": index,
    }  # fmt: skip
    for name, values in content.items():
        part = name.split("/")[0]
        if part not in ("transformer_2", "image_encoder") or part in index:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(("index", "transformer", "family"), PIPELINES)
def test_every_wan_pipeline_is_known_by_its_configs(
    index: dict[str, Any], transformer: dict[str, Any], family: str, tmp_path: Path
) -> None:
    folder = diffusers_folder(tmp_path / "mine", index, transformer)
    installed = store.locate(str(folder))
    spec = installed.spec
    assert (spec.family, spec.name, spec.shift) == (family, "mine", 2.5)
    assert spec.conditioning == FAMILIES[family].conditioning
    assert spec.abilities == FAMILIES[family].abilities
    assert installed.folder == folder
    two = "transformer_2" in index
    assert ("transformer_2" in installed.parts) == two
    assert spec.boundary == (index.get("boundary_ratio", 0.9) if two else None)
    assert (spec.guidance_scale_2 is None) == (not two)
    assert ("image_encoder" in installed.parts) == spec.image_encoder


def test_diffusers_folders_that_cannot_be_used(tmp_path: Path) -> None:
    two = {"_class_name": "WanPipeline", "transformer_2": ["d", "W"]}
    pictured = {"_class_name": "WanImageToVideoPipeline", "image_encoder": ["t", "C"]}
    for number, (index, transformer, removed, words) in enumerate(
        [
            ({"_class_name": "FluxPipeline"}, {}, "", "holds a FluxPipeline"),
            (two, {}, "transformer_2", "has no transformer_2/"),
            (two | {"boundary_ratio": "high"}, {}, "", "boundary_ratio is 'high'"),
            (pictured, {"image_dim": 1280, "in_channels": 36}, "image_encoder", "image_encoder/"),
            (pictured, {"image_dim": 1280}, "", "has 16 latent channels, vae/ gives 36"),
            ({"_class_name": "WanPipeline"}, {"in_channels": 36}, "", "has 36 latent channels"),
        ]
    ):
        folder = diffusers_folder(tmp_path / str(number), index, transformer)
        if removed:
            shutil.rmtree(folder / removed)
        with pytest.raises(SoraError, match=words) as caught:
            store.locate(str(folder))
        assert caught.value.hint and "\n" not in caught.value.message


# ---------------------------------------------------------------- single files, original folders


def test_a_single_file_names_what_it_lacks_and_takes_it(files: dict[str, Path]) -> None:
    model = str(files["transformer"])
    with pytest.raises(UsageError, match="is a transformer alone, and no vae for it") as caught:
        store.locate(model)
    assert caught.value.hint == "--vae FILE, or: sora weights pull wan2.1-t2v-1.3b-fp16"
    with pytest.raises(UsageError, match="no text encoder") as caught:
        store.locate(model, vae=files["vae"])
    assert str(caught.value.hint).startswith("--text-encoder FILE, or: ")
    shutil.rmtree(files["tokenizer"])
    with pytest.raises(UsageError, match="no tokenizer"):
        store.locate(model, vae=files["vae"], text_encoder=files["text_encoder"])
    save_tokenizer(files["tokenizer"])
    installed = store.locate(model, vae=files["vae"], text_encoder=files["text_encoder"])
    assert dict(installed.parts) == files and installed.folder is None
    spec = installed.spec
    assert (spec.name, spec.family, spec.boundary) == ("1", "wan2.1-t2v", None)
    assert (spec.vae_scale_factors, spec.size_multiple) == ((4, 8, 8), 16)
    with pytest.raises(UsageError, match="is not there"):
        store.locate(model, vae=files["vae"].with_name("none.safetensors"))


def test_companions_are_found_among_what_is_installed(files: dict[str, Path]) -> None:
    """Those that fit: an autoencoder of another latent width, or a LoRA, is passed over."""
    narrow = replace(VAE21, z_dim=8, latents_mean=(0.0,) * 8, latents_std=(1.0,) * 8)
    wrong = save(narrow, files["vae"].with_name("narrow") / "a.safetensors")
    (wrong.parent / "config.json").write_text(
        json.dumps({"latents_mean": [0.0] * 8, "latents_std": [1.0] * 8})
    )
    for part, name in ((wrong.parent, "a"), (files["vae"], "b"), (files["text_encoder"], "c")):
        assert local.take_in(part, name, lambda *_: None).kind == "part"
    installed = store.locate(str(files["transformer"]))
    assert dict(installed.parts) == files
    with pytest.raises(UsageError, match="b is no model alone: it holds vae"):
        store.locate("b")


def test_parts_that_are_not_of_one_model_are_refused(files: dict[str, Path]) -> None:
    model = str(files["transformer"])
    wide = save(replace(UMT5, hidden_size=48), files["text_encoder"].with_name("4.pth"))
    with pytest.raises(WeightsError, match="gives text 48 wide, the transformer takes 32"):
        store.locate(model, vae=files["vae"], text_encoder=wide)
    with pytest.raises(WeightsError, match="is a text encoder: the parts are not of one model"):
        store.locate(model, vae=files["text_encoder"], text_encoder=files["text_encoder"])
    with pytest.raises(UsageError, match="2 is no model alone: it holds vae"):
        store.locate(str(files["vae"]))


def test_an_original_folder_is_read_by_its_tensors(tmp_path: Path) -> None:
    folder = original_folder(tmp_path / "Wan")
    installed = store.locate(str(folder))
    assert installed.spec.family == "wan2.1-t2v" and installed.spec.name == "Wan"
    assert installed.parts == {
        "transformer": folder,  # with its config.json
        "vae": folder / "Wan2.1_VAE.pth",
        "text_encoder": folder / "models_t5_umt5-xxl-enc-bf16.pth",
        "tokenizer": folder / "google" / "umt5-xxl",
    }


def test_two_experts_are_told_apart_by_name_alone(tmp_path: Path) -> None:
    folder = original_folder(tmp_path / "Wan")
    for name in ("high_noise_model", "low_noise_model"):
        save(DIT, folder / name / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UsageError, match="has 3 of a kind, a diffusion transformer"):
        store.locate(str(folder))
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    installed = store.locate(str(folder))
    assert (installed.spec.family, installed.spec.boundary) == ("wan2.2-t2v-a14b", 0.875)
    assert "high_noise_model" in installed.parts["transformer"].parts
    assert "low_noise_model" in installed.parts["transformer_2"].parts


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "words.safetensors").write_text("words")
    save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    for name, words in (
        ("empty", "has no model_index.json and no weights"),
        ("notes.txt", "is a file that holds no weights"),
        ("words.safetensors", "is damaged or not a safetensors file"),
        ("other.safetensors", "is no network that this program knows"),
        ("none", "unknown model"),
    ):
        with pytest.raises(SoraError, match=words) as caught:
            store.locate(str(tmp_path / name))
        assert "\n" not in caught.value.message and caught.value.hint


# ---------------------------------------------------------------- what is asked of a model


def test_work_and_identity_are_the_same_in_every_layout(
    files: dict[str, Path], tmp_path: Path
) -> None:
    given = {"vae": files["vae"], "text_encoder": files["text_encoder"]}
    single = store.locate(str(files["transformer"]), **given)
    folder = store.locate(str(original_folder(tmp_path / "d")))
    job = JobShape(width=64, height=64, num_frames=9, steps=1)
    alone, together = (costs.forward_flops(store.network_shapes(m), job) for m in (single, folder))
    assert alone == together > 0
    assert store.size_on_disk(single) == sum(
        files[part].stat().st_size for part in ("transformer", *given)
    )
    assert store.verify(single) == 0
    before = store.identity(single)
    assert before == store.identity(single) and before.startswith("headers:")
    save(replace(DIT, ffn_dim=80), files["transformer"])
    assert store.identity(single) != before


# ---------------------------------------------------------------- imports


def test_an_imported_model_has_a_name_and_stays_where_it_is(
    files: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    folder = original_folder(tmp_path / "Wan 2.1!")
    before = sorted(tmp_path.rglob("*"))
    assert main(["weights", "import", str(folder), "--progress", "none"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "wan-2.1\n"
    assert "wan-2.1 is a model: text_encoder, tokenizer, transformer, vae" in captured.err
    assert [path for path in sorted(tmp_path.rglob("*")) if "xdg" not in path.parts] == before
    installed = store.locate("wan-2.1")
    assert installed.spec.name == "wan-2.1"
    assert installed.parts == store.locate(str(folder)).parts
    assert store.identity(installed).startswith("sha256:")
    assert "wan-2.1" in store.installed_names()

    for words in (["import", str(folder)], ["import", str(folder), "--name", "tiny"]):
        assert main(["weights", *words]) == 2
        assert "is already the name of a model" in capsys.readouterr().err
    assert main(["weights", "import", str(folder), "--name", "../x"]) == 2
    assert main(["weights", "import", str(tmp_path / "none")]) == 2
    assert main(["weights", "list"]) == 0
    assert "imported: text_encoder, tokenizer, transformer, vae" in capsys.readouterr().out
    assert main(["weights", "path", "wan-2.1"]) == 0
    assert capsys.readouterr().out == f"{folder}\n"

    assert main(["weights", "verify", "wan-2.1"]) == 0
    path = folder / "Wan2.1_VAE.pth"
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    assert main(["weights", "verify", "wan-2.1", "--progress", "none"]) == 3
    error, hint = capsys.readouterr().err.splitlines()
    assert f"{path} of wan-2.1 is damaged" in error
    assert hint == "hint: put it back, or: sora weights remove wan-2.1"
    assert main(["weights", "remove", "wan-2.1"]) == 0
    assert capsys.readouterr().out == "wan-2.1: 0.0 MB freed\n"
    assert path.is_file() and main(["weights", "path", "wan-2.1"]) == 2


def test_an_imported_model_that_was_moved_away(tmp_path: Path) -> None:
    folder = original_folder(tmp_path / "wan")
    local.take_in(folder, None, lambda *_: None)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(WeightsError, match="of wan is gone") as caught:
        store.locate("wan")
    assert caught.value.hint == "sora weights remove wan, or put it back"
    assert store.installed_names() == ("tiny",)


def test_a_record_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    records.write(records.Record(name="a", kind="model", parts={}, files=()))
    (path,) = records.folder().iterdir()
    assert [record.name for record in records.read_all()] == ["a"]
    for text in ("{", "[]", "{}", '{"schema": 9}', '{"schema": 1, "name": 3}'):
        path.write_text(text)
        assert records.read("a") is None and records.read_all() == ()


# ---------------------------------------------------------------- LoRAs


def test_loras_by_name_become_their_files_and_bring_their_schedule(tmp_path: Path) -> None:
    named, loose = Lora(path=Path("wan2.2-lightx2v-t2v"), scale=0.9), Lora(path=Path("a.pth"))
    with pytest.raises(WeightsError, match="are not on this machine") as caught:
        store.lora_files([named])
    assert caught.value.hint == "sora weights pull wan2.2-lightx2v-t2v"
    parts = {"high": tmp_path / "h.safetensors", "low": tmp_path / "l.safetensors"}
    records.write(records.Record(name=str(named.path), kind="lora", parts=parts, files=()))
    assert store.lora_files([loose, named]) == (
        loose,
        Lora(path=parts["high"], scale=0.9, expert="high"),
        Lora(path=parts["low"], scale=0.9, expert="low"),
    )
    assert store.lora_files([replace(named, expert="low")])[0].path == parts["low"]
    spec = store.with_loras(FAMILIES["wan2.2-t2v-a14b"], [loose, named])
    assert (spec.num_inference_steps, spec.guidance_scale, spec.sampler) == (4, 1.0, "euler")
    assert spec.fixed_sigmas is not None and spec.boundary is not None
    # Two steps for each expert.
    assert [sigma >= spec.boundary for sigma in spec.fixed_sigmas] == [True, True, False, False]
    with pytest.raises(UsageError, match="is made for wan2.2-t2v-a14b and") as wrong:
        store.with_loras(FAMILIES["wan2.1-t2v"], [named])
    assert wrong.value.hint == "-m wan2.2-t2v-a14b"
    with pytest.raises(UsageError, match="is no model but a lora") as wrong:
        store.locate("wan2.2-lightx2v-t2v")
    assert wrong.value.hint == "--lora wan2.2-lightx2v-t2v"


def test_the_embedded_model_has_its_parts() -> None:
    installed = store.locate("tiny")
    assert installed.folder is not None and installed.language_model is not None
    assert {"transformer", "vae", "text_encoder", "tokenizer"} < set(installed.parts)
    assert folders.parts_of(installed.folder) == installed.parts
    assert store.verify(installed) > 10
