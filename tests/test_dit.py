"""The diffusion transformer against diffusers' `WanTransformer3DModel`, and its own promises."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sora_cli.models import layers
from sora_cli.models.dit import DiT, DiTConfig, patchify, unpatchify
from sora_cli.models.layers import rope_table, timestep_embedding
from sora_cli.weights.configs import dit_config
from sora_cli.weights.keymaps import (
    DIT_DIFFUSERS,
    dit_config_to_diffusers,
    inverse,
    rename,
)
from tests import figures

TOLERANCE = 1e-5

PATCHED = DiTConfig(
    num_layers=3,
    hidden_size=84,
    num_heads=3,  # a head of 28: 12 for time, 8 for height, 8 for width
    ffn_dim=136,
    in_channels=7,
    out_channels=5,
    text_dim=24,
    text_len=12,
    patch_size=(1, 2, 2),
)
PLAIN = replace(PATCHED, patch_size=(1, 1, 1))
PATCHES = pytest.mark.parametrize("config", [PATCHED, PLAIN], ids=["patch 2", "patch 1"])

LATENTS = (2, 7, 4, 6, 10)  # [B, C, T, H, W]
SCALAR = torch.tensor([999.0, 417.3])  # [B]
PER_FRAME = torch.tensor([[0.0, 999.0, 417.3, 83.9], [12.0, 0.0, 500.5, 931.7]])  # [B, T]
TIMESTEPS = pytest.mark.parametrize("timesteps", [SCALAR, PER_FRAME], ids=["scalar", "per frame"])


class ExactTimesteps(nn.Module):
    """Wan's float64 timestep embedding, in the place of diffusers' float32 one.

    At t = 1000 float32 angles are off by 6e-5, and every other difference would drown in that.
    """

    def forward(self, timesteps: Tensor) -> Tensor:
        rates = torch.pow(10000.0, -torch.arange(128, dtype=torch.float64) / 128)
        angles = timesteps.double()[:, None] * rates
        return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


def randomise(model: nn.Module) -> None:
    """New values everywhere: parameters that start as zeros and ones would hide mistakes."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in sorted(model.named_parameters()):
        values = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.data = 1 + 0.3 * values
        elif parameter.ndim == 1 or name.endswith(("table", "modulation")):
            parameter.data = 0.3 * values
        else:
            parameter.data = values * parameter[0].numel() ** -0.5


def pair(config: DiTConfig) -> tuple[WanTransformer3DModel, DiT]:
    """The reference and ours, with the same random weights."""
    reference = WanTransformer3DModel.from_config(dit_config_to_diffusers(config)).eval()
    randomise(reference)
    reference.condition_embedder.timesteps_proj = ExactTimesteps()
    with torch.device("meta"):
        ours = DiT(config)
    state = reference.state_dict()
    names = rename(state, DIT_DIFFUSERS)
    ours.load_state_dict({names[k]: v for k, v in state.items()}, strict=True, assign=True)
    return reference, ours


def random_dit(config: DiTConfig) -> DiT:
    model = DiT(config)
    randomise(model)
    return model


def shapes_of(config: DiTConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in DiT(config).state_dict().items()}


def inputs(config: DiTConfig) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(LATENTS, generator=generator)
    context = torch.randn(LATENTS[0], config.text_len, config.text_dim, generator=generator)
    context[0, 5:] = 0  # padding, which attention sees
    return latents, context


def per_token(timesteps: Tensor, config: DiTConfig) -> Tensor:
    """`[B, T]` to `[B, L]`, the form diffusers takes; `[B]` stays."""
    _, height, width = config.patch_size
    tokens = LATENTS[3] // height * (LATENTS[4] // width)
    return timesteps if timesteps.ndim == 1 else timesteps.repeat_interleave(tokens, dim=1)


@PATCHES
@TIMESTEPS
@torch.no_grad()
def test_matches_diffusers(config: DiTConfig, timesteps: Tensor) -> None:
    reference, ours = pair(config)
    latents, context = inputs(config)
    (expected,) = reference(latents, per_token(timesteps, config), context, return_dict=False)
    velocity = ours(latents, timesteps, context)
    assert expected.abs().max() > 1
    kind = "scalar" if timesteps.ndim == 1 else "per-frame"
    what = f"DiT, patch {config.patch_size[1]}, {kind} timesteps"
    figures.within(TOLERANCE, what, velocity, expected)


@pytest.mark.parametrize("rotate", [layers.rotate_complex, layers.rotate_real])
def test_both_forms_of_rope_match_diffusers(rotate: Callable[[Tensor, Tensor], Tensor]) -> None:
    x = torch.randn(2, 4 * 3 * 5, 3, 28)
    rope = WanTransformer3DModel.from_config(dit_config_to_diffusers(PATCHED)).rope
    cos, sin = rope(torch.empty(2, 7, 4, 6, 10))
    pairs = x.unflatten(-1, (-1, 2))
    (even, odd), cos, sin = pairs.unbind(-1), cos[..., 0::2], sin[..., 1::2]
    expected = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    turned = rotate(pairs, rope_table((4, 3, 5), 28, torch.device("cpu")))
    assert (turned - expected).abs().max() <= TOLERANCE


def test_timestep_embedding_matches_diffusers_within_its_rounding() -> None:
    reference = WanTransformer3DModel.from_config(dit_config_to_diffusers(PATCHED))
    timesteps = torch.tensor([0.0, 0.5, 83.9, 417.3, 999.0, 1000.0])
    expected = reference.condition_embedder.timesteps_proj(timesteps)
    assert (timestep_embedding(timesteps, 256) - expected).abs().max() < 1e-4
    assert torch.equal(timestep_embedding(timesteps, 256), ExactTimesteps()(timesteps))


@PATCHES
@torch.no_grad()
def test_prepared_context_changes_no_bit(config: DiTConfig) -> None:
    model = random_dit(config)
    latents, context = inputs(config)
    cache = model.prepare_context(context)
    assert torch.equal(model(latents, PER_FRAME, cache), model(latents, PER_FRAME, context))


@torch.no_grad()
def test_equal_timesteps_in_any_form_mean_the_same() -> None:
    model = random_dit(PATCHED)
    latents, context = inputs(PATCHED)
    frames = SCALAR[:, None].expand(2, 4)
    expected = model(latents, SCALAR, context)
    for timesteps in (frames, per_token(frames, PATCHED)):
        assert (model(latents, timesteps, context) - expected).abs().max() <= TOLERANCE


@torch.no_grad()
def test_context_beyond_the_words_is_attended() -> None:
    model = random_dit(PATCHED)
    latents, context = inputs(PATCHED)
    shorter = model(latents, SCALAR, context[:, :5])
    assert (model(latents, SCALAR, context) - shorter)[0].abs().max() > 1e-3


@given(
    grid=st.tuples(*[st.integers(1, 4)] * 3),
    patch=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
)
@settings(max_examples=30, deadline=None)
def test_unpatchify_undoes_patchify(
    grid: tuple[int, int, int], patch: tuple[int, int, int]
) -> None:
    size = [n * p for n, p in zip(grid, patch, strict=True)]
    latents = torch.randn(2, 3, *size)
    tokens = patchify(latents, patch)
    assert tokens.shape[:2] == (2, grid[0] * grid[1] * grid[2])
    assert torch.equal(unpatchify(tokens, grid, patch), latents)


def test_bf16_weights_keep_fp32_islands() -> None:
    latents, context = inputs(PLAIN)
    model = random_dit(PLAIN)
    with torch.no_grad():
        exact = model(latents, PER_FRAME, context)
    model.to(torch.bfloat16)
    seen: dict[str, torch.dtype] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _, __, out, name=name: (
                seen.update({name: out.dtype}) if isinstance(out, Tensor) else None
            )
        )
    with torch.inference_mode():
        velocity = model(latents, PER_FRAME, context)
    fp32 = [n for n in seen if n.endswith((".norm", "norm1", "norm2", "norm3", "norm_q", "norm_k"))]
    fp32 += ["head", *(f"blocks.{i}" for i in range(PLAIN.num_layers))]
    assert {seen[name] for name in fp32} == {torch.float32}
    assert seen["blocks.0.self_attn.q"] == seen["blocks.0.ffn.2"] == torch.bfloat16
    assert (velocity - exact).abs().mean() < 0.03 * exact.abs().mean()


def test_autocast_gives_every_parameter_a_gradient() -> None:
    model = random_dit(PLAIN)
    latents, context = inputs(PLAIN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        velocity = model(latents, PER_FRAME, context)
    velocity.square().mean().backward()
    assert velocity.dtype == torch.float32
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_training_may_follow_inference_on_the_same_grid() -> None:
    rope_table.cache_clear()
    model = random_dit(PLAIN)
    latents, context = inputs(PLAIN)
    with torch.inference_mode():
        model(latents, SCALAR, context)
    model(latents, SCALAR, context).sum().backward()


def test_initial_velocity_is_zero_and_learning_starts() -> None:
    model = DiT(PLAIN)
    model.init_weights()
    latents, context = inputs(PLAIN)
    velocity = model(latents, SCALAR, context)
    assert not velocity.any()
    (velocity - 1).square().mean().backward()
    assert model.head.head.weight.grad.any()
    deviation = torch.cat([block.modulation.flatten() for block in model.blocks]).detach().std()
    assert deviation == pytest.approx(PLAIN.hidden_size**-0.5, rel=0.1)


@pytest.mark.parametrize(
    "config", [PATCHED, replace(PATCHED, cross_attn_norm=False)], ids=["norm", "no norm"]
)
def test_names_map_one_to_one(config: DiTConfig) -> None:
    with torch.device("meta"):
        theirs = WanTransformer3DModel.from_config(dit_config_to_diffusers(config)).state_dict()
        ours = DiT(config).state_dict()
    there = rename(theirs, DIT_DIFFUSERS)
    back = rename(ours, inverse(DIT_DIFFUSERS))
    assert set(there.values()) == set(ours)
    assert {name: back[there[name]] for name in theirs} == {name: name for name in theirs}


def test_a_strange_name_is_refused() -> None:
    with pytest.raises(KeyError, match=r"blocks\.0\.attn3"):
        rename(["blocks.0.attn3.to_q.weight"], DIT_DIFFUSERS)
    with pytest.raises(KeyError):
        rename(["blocks.x.attn1.to_q.weight"], DIT_DIFFUSERS)


@pytest.mark.parametrize("config", [PATCHED, replace(PLAIN, cross_attn_norm=False, qk_norm=False)])
def test_configs_survive_the_round_trip(config: DiTConfig) -> None:
    text = json.dumps(dit_config_to_diffusers(config))
    assert dit_config(shapes_of(config), json.loads(text)) == config


def test_a_published_config_has_512_text_tokens() -> None:
    theirs = dit_config_to_diffusers(PATCHED)
    del theirs["text_len"]  # diffusers has no such key
    assert dit_config(shapes_of(PATCHED), theirs) == replace(PATCHED, text_len=512)


@torch.no_grad()
def test_diffusers_loads_what_we_save(tmp_path: Path) -> None:
    ours = random_dit(PLAIN)
    state = ours.state_dict()
    names = rename(state, inverse(DIT_DIFFUSERS))
    (tmp_path / "config.json").write_text(json.dumps(dit_config_to_diffusers(PLAIN)))
    save_file(
        {names[k]: v for k, v in state.items()}, tmp_path / "diffusion_pytorch_model.safetensors"
    )
    # from_pretrained, step by step: in one call it wants accelerate installed.
    loaded = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(tmp_path))
    loaded.load_state_dict(load_file(tmp_path / "diffusion_pytorch_model.safetensors"), strict=True)
    loaded.eval().condition_embedder.timesteps_proj = ExactTimesteps()
    latents, context = inputs(PLAIN)
    (expected,) = loaded(latents, per_token(PER_FRAME, PLAIN), context, return_dict=False)
    assert (ours(latents, PER_FRAME, context) - expected).abs().max() <= TOLERANCE
