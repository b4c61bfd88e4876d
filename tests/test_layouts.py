"""Every published layout of the same weights gives the same network, bit for bit."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from sora_cli.errors import WeightsError
from sora_cli.models.dit import DiT, DiTConfig
from sora_cli.weights import configs, keymaps_text, load
from sora_cli.weights.layouts import Layout, recognise
from sora_cli.weights.tensors import open_tensors
from tests import original_layout, wan_folders

Parts = dict[str, Path]
NETWORKS: dict[str, Any] = {
    "transformer": load.dit,
    "vae": load.vae,
    "text_encoder": load.text_encoder,
}
PIPELINES = {"2.1": wan_folders.wan21, "2.2": wan_folders.wan22}
LAYOUTS = ("sharded", "original", "single file", "single file, short prefix", "no prefix", "pickle")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Parts]:
    """Parts by version and layout; not to be changed."""
    root = tmp_path_factory.mktemp("layouts")
    found: dict[tuple[str, str], Parts] = {}
    for version, pipeline in PIPELINES.items():
        made, target = original_layout.published(pipeline()), root / version
        folder = wan_folders.save(made, target / "diffusers")
        shards = wan_folders.save(made, target / "shards", shards=True)
        found[version, "diffusers"] = {name: folder / name for name in NETWORKS}
        found[version, "sharded"] = {name: shards / name for name in NETWORKS}
        found[version, "original"] = original_layout.write_original(folder, target / "original")
        for name, prefix in (
            ("single file", original_layout.PREFIX),
            ("single file, short prefix", "diffusion_model."),
            ("no prefix", ""),
        ):
            found[version, name] = original_layout.write_single_files(
                folder, target / name, prefix=prefix
            )
        (target / "pickle").mkdir()
        found[version, "pickle"] = {name: target / "pickle" / f"{name}.pth" for name in NETWORKS}
        for name, path in found[version, "pickle"].items():
            torch.save(original_layout.read_state(folder / name), path)
    return found


def outputs(name: str, network: Any) -> Tensor:
    """What a network computes of fixed inputs."""
    generator = torch.Generator().manual_seed(5)
    if name == "text_encoder":
        ids = torch.tensor([[3, 4, 5, 1, 0, 0]])
        return network(ids, (ids != 0).long())
    if name == "vae":
        latents = torch.randn(1, network.config.z_dim, 2, 2, 3, generator=generator)
        return network.decode(latents)
    latents = torch.randn(1, network.config.in_channels, 2, 4, 6, generator=generator)
    context = torch.randn(1, 9, network.config.text_dim, generator=generator)
    return network(latents, torch.tensor([[0.0, 417.0]]), context)


@torch.no_grad()
def loaded(name: str, part: Path) -> tuple[Any, dict[str, Tensor], Tensor]:
    with NETWORKS[name](part, device="cpu", dtype=torch.float32) as network:
        state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        return network.config, state, outputs(name, network)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("version", PIPELINES)
def test_all_layouts_are_one_network(
    version: str, name: str, layouts: dict[tuple[str, str], Parts]
) -> None:
    config, state, output = loaded(name, layouts[version, "diffusers"][name])
    assert output.isfinite().all() and output.std() > 1e-3
    for layout in LAYOUTS:
        found, other, same = loaded(name, layouts[version, layout][name])
        assert found == config, layout
        assert other.keys() == state.keys(), layout
        assert all(torch.equal(other[key], tensor) for key, tensor in state.items()), layout
        assert torch.equal(same, output), layout


def test_image_encoders_of_all_layouts_are_one_network(tmp_path: Path) -> None:
    """Transformers' folder, ComfyUI's file, and Wan's own with fused queries, keys and values."""
    theirs = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=160, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2,
            image_size=28, patch_size=14, hidden_act="gelu",
        )
    ).eval()  # fmt: skip
    wan_folders.randomise(theirs, seed=4)
    theirs.save_pretrained(tmp_path / "image_encoder")
    state = original_layout.read_state(tmp_path / "image_encoder")
    old = {f"vision_model.{n.removeprefix('vision_model.')}": t for n, t in state.items()}
    save_file(old | {"visual_projection.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    torch.save(original_layout.clip_state(state), tmp_path / "b.pth")
    pictures = torch.linspace(-1, 1, 3 * 28 * 28).view(1, 3, 28, 28)
    outputs, states = [], []
    for name in ("image_encoder", "a.safetensors", "b.pth"):
        assert identify(tmp_path / name).kind == "image_encoder"
        with load.image_encoder(tmp_path / name, device="cpu", dtype=torch.float32) as encoder:
            states.append({key: tensor.clone() for key, tensor in encoder.state_dict().items()})
            with torch.no_grad():
                outputs.append(encoder(pictures))
            fit = encoder.preprocessing.fit
        assert fit == ("crop" if name == "image_encoder" else "original")
    for other in states[1:]:
        assert other.keys() == states[0].keys()
        assert all(torch.equal(other[key], tensor) for key, tensor in states[0].items())
    assert torch.equal(outputs[1], outputs[0]) and torch.equal(outputs[2], outputs[0])
    broken = {n: t for n, t in old.items() if "layers.0.self_attn.k_proj.bias" not in n}
    save_file(broken, tmp_path / "c.safetensors")
    with (
        pytest.raises(WeightsError, match=r"layers\.0\.self_attn\.k_proj\.bias is missing"),
        load.image_encoder(tmp_path / "c.safetensors", device="cpu", dtype=torch.float32),
    ):
        pass


def test_the_writers_names_are_those_diffusers_converts_from(
    layouts: dict[tuple[str, str], Parts],
) -> None:
    """So that the layouts above are the published ones, and not a mistake made twice."""
    for name, convert in (
        ("transformer", convert_wan_transformer_to_diffusers),
        ("vae", convert_wan_vae_to_diffusers),  # of 2.1: it knows no other
    ):
        theirs = original_layout.read_state(layouts["2.1", "diffusers"][name])
        original = (
            original_layout.vae_state(theirs)
            if name == "vae"
            else original_layout.rename_state(theirs, original_layout.transformer_name)
        )
        converted = convert(dict(original))
        assert converted.keys() == theirs.keys()
        assert all(torch.equal(converted[key], tensor) for key, tensor in theirs.items())


def identify(part: Path) -> Layout:
    with closing(open_tensors(part)) as source:
        return recognise(source)


def test_parts_are_told_by_their_tensors(layouts: dict[tuple[str, str], Parts]) -> None:
    for (version, layout), parts in layouts.items():
        for name in NETWORKS:
            found = identify(parts[name])
            assert found.kind == name, (version, layout)
            family = {"2.1": "wan2.1-t2v", "2.2": "wan2.2-ti2v"}[version]
            assert found.family == (family if name == "transformer" else None)
    assert identify(layouts["2.1", "diffusers"]["vae"]).naming == "diffusers"
    assert identify(layouts["2.1", "original"]["vae"]).naming == "original"
    assert identify(layouts["2.1", "single file"]["text_encoder"]).naming == "transformers"


@pytest.mark.parametrize("version", PIPELINES)
def test_a_config_that_lies_does_not_win(
    version: str, layouts: dict[tuple[str, str], Parts], tmp_path: Path
) -> None:
    """As in a public mirror of TI2V-5B, whose config speaks of an image branch it lacks."""
    lies: dict[str, dict[str, Any]] = {
        "transformer": {
            "image_dim": 1280, "added_kv_proj_dim": 5120, "num_layers": 7, "ffn_dim": 99,
            "in_channels": 36, "out_channels": 3, "text_dim": 7, "num_attention_heads": 12,
            "patch_size": [1, 1, 1], "qk_norm": None, "cross_attn_norm": False,
            "vace_layers": [0, 2], "pos_embed_seq_len": 514,
        },
        "vae": {
            "base_dim": 96, "decoder_base_dim": 1, "dim_mult": [1], "num_res_blocks": 5,
            "is_residual": None, "patch_size": 7, "z_dim": 3, "temperal_downsample": [True],
        },
        "text_encoder": {"d_model": 4096, "num_layers": 24, "d_kv": 64, "num_heads": 64},
    }  # fmt: skip
    for name, values in lies.items():
        part = layouts[version, "diffusers"][name]
        truth, state, _ = loaded(name, part)
        folder = tmp_path / name
        folder.mkdir()
        for file in part.glob("*.safetensors"):
            (folder / file.name).symlink_to(file)
        said = json.loads((part / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(said | values))
        found, other, _ = loaded(name, folder)
        assert found == truth
        assert other.keys() == state.keys()


def test_the_config_supplies_what_shapes_cannot_show(
    layouts: dict[tuple[str, str], Parts], tmp_path: Path
) -> None:
    said: dict[str, dict[str, Any]] = {
        "transformer": {"num_attention_heads": 4, "attention_head_dim": 64, "text_len": 9, "eps":
                        1e-5},
        "vae": {"latents_mean": [0.5] * 16, "latents_std": [2] * 16},
        "text_encoder": {"relative_attention_max_distance": 77, "layer_norm_epsilon": 1e-5},
    }  # fmt: skip
    wanted: dict[str, dict[str, Any]] = {
        "transformer": {"num_heads": 4, "text_len": 9, "eps": 1e-5},
        "vae": {"latents_mean": (0.5,) * 16, "latents_std": (2.0,) * 16},
        "text_encoder": {"max_distance": 77, "eps": 1e-5},
    }
    for name, values in said.items():
        part = layouts["2.1", "diffusers"][name]
        folder = tmp_path / name
        folder.mkdir()
        for file in part.glob("*.safetensors"):
            (folder / file.name).symlink_to(file)
        plain = identify(folder).config  # without a config.json: the published numbers
        (folder / "config.json").write_text(json.dumps(values))
        assert identify(folder).config == replace(plain, **wanted[name])  # type: ignore[type-var]


BASE = DiTConfig(
    num_layers=4, hidden_size=128, num_heads=1, ffn_dim=24, in_channels=16, out_channels=16,
    text_dim=12,
)  # fmt: skip
FAMILIES = {
    "wan2.1-t2v": BASE,
    "wan2.1-i2v": replace(BASE, in_channels=36, image_dim=20),
    "wan2.1-flf2v": replace(BASE, in_channels=36, image_dim=20, pos_embed_len=514),
    "wan2.1-vace": replace(BASE, vace_layers=(0, 2), vace_in_channels=96),
    "wan2.2-ti2v": replace(BASE, in_channels=48, out_channels=48),
    "wan2.2-i2v-a14b": replace(BASE, in_channels=36),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_branches_are_read_from_shapes(family: str, tmp_path: Path) -> None:
    """No config.json, original names: single files have nothing else."""
    network = DiT(FAMILIES[family])
    names = {f"{original_layout.PREFIX}{n}": t for n, t in network.state_dict().items()}
    path = tmp_path / "anything.safetensors"
    save_file(names, path)
    found = identify(path)
    assert (found.family, found.config) == (family, FAMILIES[family])
    with load.dit(path, device="cpu", dtype=torch.float32) as dit:
        for name, tensor in network.state_dict().items():
            assert torch.equal(dit.state_dict()[name], tensor)


@pytest.mark.parametrize(("layers", "blocks", "stride"), [(30, 15, 2), (40, 8, 5)])
def test_vaces_blocks_are_spread_as_published(layers: int, blocks: int, stride: int) -> None:
    found = configs._vace_layers(blocks, layers, {})
    assert found == tuple(range(0, layers, stride)) and len(found) == blocks
    said = [0, *range(layers - blocks + 1, layers)]
    assert configs._vace_layers(blocks, layers, {"vace_layers": said}) == tuple(said)
    assert configs._vace_layers(blocks, layers, {"vace_layers": [0]}) == found  # a lie


def test_llama_cpps_names_are_ours(layouts: dict[tuple[str, str], Parts]) -> None:
    """GGUF files of umT5; the names are the gguf package's own."""
    gguf = pytest.importorskip("gguf")
    names = gguf.TENSOR_NAMES if hasattr(gguf, "TENSOR_NAMES") else gguf.constants.TENSOR_NAMES
    own = {names[t] for t in gguf.MODEL_TENSORS[gguf.MODEL_ARCH.T5ENCODER]} - {"output"}
    with load.text_encoder(
        layouts["2.1", "original"]["text_encoder"], device="cpu", dtype=torch.float32
    ) as encoder:
        wanted, blocks = set(encoder.state_dict()), range(encoder.config.num_layers)
    theirs = {n.format(bid=i) + ".weight" for n in own for i in blocks if "_rel_b" not in n}
    theirs |= {f"enc.blk.{i}.attn_rel_b.weight" for i in blocks}
    assert set(keymaps_text.from_gguf(sorted(theirs)).values()) == wanted


# ---------------------------------------------------------------- what is no network, or no longer


def refuse(path: Path, *words: str) -> None:
    with pytest.raises(WeightsError) as caught:
        identify(path)
    assert all(word in caught.value.message for word in words), caught.value.message
    assert "\n" not in caught.value.message and caught.value.hint


def test_a_stranger_is_named(tmp_path: Path) -> None:
    save_file({"lm_head.weight": torch.ones(2)}, tmp_path / "a.safetensors")
    refuse(tmp_path / "a.safetensors", "no network that this program knows", "lm_head.weight")


def test_a_lora_is_told_from_a_transformer(tmp_path: Path) -> None:
    names = ("blocks.0.self_attn.q.lora_down.weight", "head.head.diff")
    save_file({f"diffusion_model.{n}": torch.ones(2) for n in names}, tmp_path / "a.safetensors")
    assert identify(tmp_path / "a.safetensors").kind == "lora"


def test_a_network_without_its_beginning_is_not_whole(
    layouts: dict[tuple[str, str], Parts], tmp_path: Path
) -> None:
    state = original_layout.read_state(layouts["2.1", "diffusers"]["transformer"])
    del state["blocks.0.ffn.net.0.proj.weight"]
    save_file(state, tmp_path / "a.safetensors")
    refuse(tmp_path / "a.safetensors", "is not whole: blocks.0.ffn.0.weight is missing")


def test_a_width_that_is_not_made_of_published_heads_needs_a_config(tmp_path: Path) -> None:
    folder = wan_folders.save(wan_folders.wan21(), tmp_path / "wan")  # heads of 28
    (folder / "transformer" / "config.json").unlink()
    refuse(folder / "transformer", "config.json must say the number of heads")


def test_statistics_of_an_unpublished_autoencoder_need_a_config(tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parents[1] / "sora_cli" / "assets" / "tiny" / "vae"
    (tmp_path / "vae.safetensors").symlink_to(next(folder.glob("*.safetensors")))
    refuse(tmp_path / "vae.safetensors", "must give latents_mean and _std")
