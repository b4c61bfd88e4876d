"""CLIP's view of a picture against transformers, and its files in every published layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sora_cli.errors import WeightsError
from sora_cli.models.image_encoder import (
    VIT_HUGE,
    Activation,
    Fit,
    ImageEncoder,
    ImageEncoderConfig,
    Preprocessing,
    preprocess,
)
from sora_cli.weights.keymaps_clip import (
    image_encoder_config,
    image_encoder_tensors,
    preprocessing_from_hf,
    read_preprocessing,
)
from tests import figures
from tests.test_dit import randomise

TOLERANCE = 1e-5
FITS = get_args(Fit)
SIZE = 42  # pixels of a side: 3 × 3 patches of 14

CONFIG = ImageEncoderConfig(
    num_layers=4, hidden_size=160, num_heads=2, ffn_dim=200, image_size=SIZE, patch_size=14
)


def theirs(config: ImageEncoderConfig, *, projection: bool = False) -> nn.Module:
    """transformers' model of this config, with random weights."""
    kind = CLIPVisionModelWithProjection if projection else CLIPVisionModel
    model = kind(
        CLIPVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_act=config.activation,
            projection_dim=16,
        )
    ).eval()
    randomise(model)
    return model


def load(state: dict[str, Tensor], config: ImageEncoderConfig) -> ImageEncoder:
    """Ours, as the loader builds it: on the meta device, then by assignment."""
    with torch.device("meta"):
        encoder = ImageEncoder(config)
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensors |= image_encoder_tensors(name, tensor, config.num_layers)
    encoder.load_state_dict(tensors, strict=True, assign=True)
    assert not [name for name, tensor in encoder.named_buffers() if tensor.is_meta]
    return encoder.eval()


def shapes_of(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def to_original(state: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """transformers' state as Wan2.1's own file has it, by the shapes of `wan/modules/clip.py`."""
    out = {
        "log_scale": torch.zeros(()),
        "textual.token_embedding.weight": torch.zeros(3, 2),
        "visual.head": torch.zeros(4, 2),
        "visual.cls_embedding": state["embeddings.class_embedding"][None, None],
        "visual.pos_embedding": state["embeddings.position_embedding.weight"][None],
        "visual.patch_embedding.weight": state["embeddings.patch_embedding.weight"],
    }
    norms = {"pre_layrnorm": "pre_norm", "post_layernorm": "post_norm"}
    linears = {"layer_norm1": "norm1", "layer_norm2": "norm2", "mlp.fc1": "mlp.0"}
    linears |= {"mlp.fc2": "mlp.2", "self_attn.out_proj": "attn.proj"}
    for leaf in ("weight", "bias"):
        for a, b in norms.items():
            out[f"visual.{b}.{leaf}"] = state[f"{a}.{leaf}"]
        for number in range(num_layers):
            layer, block = f"encoder.layers.{number}", f"visual.transformer.{number}"
            for a, b in linears.items():
                out[f"{block}.{b}.{leaf}"] = state[f"{layer}.{a}.{leaf}"]
            parts = [state[f"{layer}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            out[f"{block}.attn.to_qkv.{leaf}"] = torch.cat(parts)
    return out


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """`[1, 3, H, W]` uint8, smooth enough that bicubic overshoot stays in range mostly."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.rand(1, 3, 5, 6, generator=generator)
    smooth = nn.functional.interpolate(rough, size=(height, width), mode="bicubic")
    return (smooth * 255).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("activation", get_args(Activation))
@torch.no_grad()
def test_matches_transformers_last_layer_but_one(activation: Activation) -> None:
    config = replace(CONFIG, num_heads=4, activation=activation)
    model = theirs(config)
    pixels = torch.randn(2, 3, SIZE, SIZE)
    expected = model(pixels, output_hidden_states=True).hidden_states[-2]
    ours = load(model.state_dict(), config)(pixels)
    assert expected.shape == (2, config.num_tokens, 160) and expected.abs().max() > 1
    figures.within(TOLERANCE, f"CLIP, {activation}", ours, expected)


@torch.no_grad()
def test_bf16_weights_stay_close_and_give_fp32() -> None:
    encoder = load(theirs(CONFIG).state_dict(), CONFIG)
    pixels = torch.randn(2, 3, SIZE, SIZE)
    exact = encoder(pixels)
    rough = encoder.to(torch.bfloat16)(pixels)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.02 * exact.abs().mean()


@torch.no_grad()
def test_every_published_layout_is_the_same_network(tmp_path: Path) -> None:
    """With and without `vision_model.`, with a projection, in a whole CLIP, in Wan's own file."""
    model = theirs(CONFIG, projection=True)
    model.save_pretrained(tmp_path)
    prefixed = load_file(tmp_path / "model.safetensors")
    assert all(name.startswith(("vision_model.", "visual_projection.")) for name in prefixed)
    bare = model.vision_model.state_dict()
    whole = dict(prefixed)  # and what an older whole CLIP has besides
    for name in ("logit_scale", "text_model.final_layer_norm.bias"):
        whole[name] = torch.zeros(1)
    whole["vision_model.embeddings.position_ids"] = torch.zeros(1, CONFIG.num_tokens)
    pixels = torch.randn(1, 3, SIZE, SIZE)
    expected = model(pixels, output_hidden_states=True).hidden_states[-2]
    for state in (prefixed, bare, whole, to_original(bare, CONFIG.num_layers)):
        config = image_encoder_config(shapes_of(state), {})
        assert config == CONFIG
        assert (load(state, config)(pixels) - expected).abs().max() <= TOLERANCE


def test_a_config_adds_what_shapes_do_not_show(tmp_path: Path) -> None:
    model = theirs(CONFIG)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    shapes = shapes_of(model.state_dict())
    assert image_encoder_config(shapes, saved) == CONFIG
    other = {**saved, "num_attention_heads": 5, "hidden_act": "quick_gelu", "hidden_size": 77}
    read = image_encoder_config(shapes, {"vision_config": other})
    assert (read.num_heads, read.activation, read.hidden_size) == (5, "quick_gelu", 160)
    del other["hidden_act"]  # what CLIP means when it says nothing
    assert image_encoder_config(shapes, other).activation == "quick_gelu"
    for wrong in ({**saved, "hidden_act": "relu"}, {**saved, "num_attention_heads": 7}):
        with pytest.raises(ValueError, match=r"relu|7 heads"):
            image_encoder_config(shapes, wrong)


def test_the_published_encoder_is_recognised_by_its_shapes() -> None:
    with torch.device("meta"):
        model = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=1280, intermediate_size=5120, num_hidden_layers=32,
                num_attention_heads=16, image_size=224, patch_size=14, hidden_act="gelu",
            )
        )  # fmt: skip
        ours = ImageEncoder(VIT_HUGE).state_dict()
    state = model.state_dict()
    assert image_encoder_config(shapes_of(state), {}) == VIT_HUGE
    assert VIT_HUGE.num_tokens == 257
    read: dict[str, Tensor] = {}
    for name, tensor in state.items():
        read |= image_encoder_tensors(name, tensor, VIT_HUGE.num_layers)
    assert shapes_of(read) == shapes_of(ours)
    original = to_original(state, VIT_HUGE.num_layers)
    assert len(original) == 394  # one of them text; a public converter of the image half counts 393
    assert image_encoder_config(shapes_of(original), {}) == VIT_HUGE


def test_a_strange_name_is_refused() -> None:
    for name in ("embedding.weight", "visual.transformer.0.attn.to_k.weight", "unet.conv.weight"):
        with pytest.raises(KeyError, match=name.replace(".", r"\.")):
            image_encoder_tensors(name, torch.zeros(2, 2), 4)


@given(height=st.integers(20, 90), width=st.integers(20, 90), square=st.booleans())
@settings(max_examples=25, deadline=None)
def test_preprocessing_matches_transformers(height: int, width: int, square: bool) -> None:
    """Resized as 8-bit values, so equal to the bit before normalising."""
    size = {"height": SIZE, "width": SIZE} if square else {"shortest_edge": SIZE}
    processor = CLIPImageProcessorPil(size=size, crop_size=SIZE)
    frame = picture(height, width)
    image = Image.fromarray(frame[0].permute(1, 2, 0).numpy())
    expected = torch.from_numpy(np.stack(processor(images=image)["pixel_values"]))
    preprocessing = preprocessing_from_hf(processor.to_dict())
    assert preprocessing.fit == ("square" if square else "crop")
    assert (preprocess(frame, SIZE, preprocessing) - expected).abs().max() <= TOLERANCE


def test_the_original_form_is_wans() -> None:
    """Bicubic on floats, both sides, and without smoothing, unlike PIL's."""
    frame = picture(90, 60)
    floats = frame.float() / 127.5 - 1
    form = Preprocessing(fit="original")
    square = nn.functional.interpolate(floats, (SIZE, SIZE), mode="bicubic") * 0.5 + 0.5
    mean, std = (torch.tensor(v)[:, None, None] for v in (form.mean, form.std))
    expected = (square - mean) / std
    for pixels in (frame, floats):
        assert (preprocess(pixels, SIZE, form) - expected).abs().max() <= TOLERANCE
    assert (preprocess(frame, SIZE, Preprocessing(fit="square")) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("fit", FITS)
@torch.no_grad()
def test_a_batch_is_its_pictures_in_either_dtype(fit: Fit) -> None:
    encoder = load(theirs(CONFIG).state_dict(), CONFIG)
    encoder.preprocessing = Preprocessing(fit=fit)
    frames = torch.cat([picture(64, 48), picture(64, 48, seed=1)])
    together = encoder.encode(frames)
    assert together.shape == (2, CONFIG.num_tokens, 160)
    for number, frame in enumerate(frames):
        for form in (frame[None], frame[None].float() / 127.5 - 1):
            assert (encoder.encode(form)[0] - together[number]).abs().max() <= TOLERANCE
    assert (together[0] - together[1]).abs().max() > 0.1


def test_the_middle_is_kept_or_everything() -> None:
    """A bright bar at the edge of a wide picture is cut off by "crop" alone."""
    frame = torch.zeros(1, 3, 40, 120, dtype=torch.uint8)
    frame[..., :30] = 255
    black = -torch.tensor(Preprocessing().mean) / torch.tensor(Preprocessing().std)
    bright = {}
    for fit in FITS:
        pixels = preprocess(frame, SIZE, Preprocessing(fit=fit))
        bright[fit] = bool((pixels[0] > black[:, None, None] + 1).any())
    assert bright == {"crop": False, "square": True, "original": True}


def test_the_form_is_read_from_beside_the_encoder(tmp_path: Path) -> None:
    part = tmp_path / "image_encoder"
    part.mkdir()
    assert read_preprocessing(part) == Preprocessing(fit="crop")  # CLIP's own, when nothing is said
    assert read_preprocessing(tmp_path / "models_clip.pth") == Preprocessing(fit="original")
    folder = tmp_path / "image_processor"
    CLIPImageProcessorPil(image_std=[0.1, 0.2, 0.3]).save_pretrained(folder)
    read = read_preprocessing(part)
    assert (read.fit, read.std) == ("crop", (0.1, 0.2, 0.3))
    config = folder / "preprocessor_config.json"
    for content in ({"size": 224, "crop_size": 224}, {}):  # the older form, and all by default
        config.write_text(json.dumps(content))
        assert read_preprocessing(part) == Preprocessing()
    for wrong in ({"resample": 0}, {"do_center_crop": False}, {"image_mean": [0.5]}):
        config.write_text(json.dumps(wrong))
        with pytest.raises(WeightsError, match=r"preprocessor_config\.json"):
            read_preprocessing(part)
