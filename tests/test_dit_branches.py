"""The branches of the published transformers against diffusers': image to video, FLF2V, VACE."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
from torch import Tensor, nn

from sora_cli.models.dit import DiT, DiTBlock, DiTConfig
from sora_cli.weights.configs import dit_config
from sora_cli.weights.keymaps import (
    DIT_DIFFUSERS,
    dit_config_to_diffusers,
    inverse,
    rename,
)
from tests import figures
from tests.test_dit import (
    PATCHED,
    PER_FRAME,
    SCALAR,
    ExactTimesteps,
    per_token,
    random_dit,
    randomise,
)

TOLERANCE = 1e-5

PLAIN = replace(PATCHED, text_len=512)  # diffusers takes the image's rows to be those beyond 512
IMAGE = replace(PLAIN, in_channels=36, out_channels=16, image_dim=20)
TWO_IMAGES = replace(IMAGE, pos_embed_len=14)
WITHOUT_CLIP = replace(PLAIN, in_channels=36, out_channels=16)
VACE = replace(
    PATCHED, num_layers=5, in_channels=16, out_channels=16, vace_layers=(0, 2, 3),
    vace_in_channels=96,
)  # fmt: skip
CONFIGS = {
    "image": IMAGE,
    "two images": TWO_IMAGES,
    "2.2 without CLIP": WITHOUT_CLIP,
    "VACE": VACE,
    "VACE of every block": replace(VACE, vace_layers=(0, 1, 2, 3, 4), cross_attn_norm=False),
}
EACH = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
TIMESTEPS = pytest.mark.parametrize("timesteps", [SCALAR, PER_FRAME], ids=["scalar", "per frame"])


def build_reference(config: DiTConfig) -> nn.Module:
    """diffusers' network of this config."""
    kind = WanVACETransformer3DModel if config.vace_layers else WanTransformer3DModel
    return kind.from_config(dit_config_to_diffusers(config)).eval()


def pair(config: DiTConfig) -> tuple[nn.Module, DiT]:
    """The reference and ours, with the same random weights."""
    reference = build_reference(config)
    randomise(reference)
    reference.condition_embedder.timesteps_proj = ExactTimesteps()
    if config.pos_embed_len is not None:  # a table of positions as large as what it is added to
        table = reference.condition_embedder.image_embedder.pos_embed
        table.data = torch.randn(table.shape, generator=torch.Generator().manual_seed(7))
    with torch.device("meta"):
        ours = DiT(config)
    state = reference.state_dict()
    names = rename(state, DIT_DIFFUSERS)
    ours.load_state_dict({names[k]: v for k, v in state.items()}, strict=True, assign=True)
    return reference, ours


def inputs(config: DiTConfig) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Latents, context, the tokens of one or two images, the control: batches of two, unlike."""
    generator = torch.Generator().manual_seed(5)
    grid = (4, 6, 10)  # T, H, W
    latents = torch.randn(2, config.in_channels, *grid, generator=generator)
    context = torch.randn(2, config.text_len, config.text_dim, generator=generator)
    context[0, 5:] = 0
    image = control = None
    if config.image_dim is not None:
        rows = config.pos_embed_len or 7
        image = torch.randn(2, rows, config.image_dim, generator=generator)
    if config.vace_in_channels is not None:
        control = torch.randn(2, config.vace_in_channels, *grid, generator=generator)
    return latents, context, image, control


def run(model: DiT, config: DiTConfig, timesteps: Tensor, scale: float = 1.0) -> Tensor:
    latents, context, image, control = inputs(config)
    return model(latents, timesteps, model.prepare_context(context, image), control, scale)


@pytest.mark.parametrize(
    "config", [IMAGE, TWO_IMAGES, WITHOUT_CLIP], ids=["image", "two images", "2.2 without CLIP"]
)
@TIMESTEPS
@torch.no_grad()
def test_image_to_video_matches_diffusers(config: DiTConfig, timesteps: Tensor) -> None:
    reference, ours = pair(config)
    latents, context, image, _ = inputs(config)
    if image is not None and config.pos_embed_len is not None:
        image = image.unflatten(1, (2, -1)).flatten(0, 1)  # theirs: two rows of a batch, not one
    (expected,) = reference(
        latents, per_token(timesteps, config), context, image, return_dict=False
    )
    assert expected.abs().max() > 1
    kind = "scalar" if timesteps.ndim == 1 else "per-frame"
    branch = "no image" if image is None else f"{2 if config.pos_embed_len else 1} image(s)"
    what = f"DiT of image to video, {branch}, {kind} timesteps"
    figures.within(TOLERANCE, what, run(ours, config, timesteps), expected)


@pytest.mark.parametrize("scale", [1.0, 0.6])
@torch.no_grad()
def test_vace_matches_diffusers(scale: float) -> None:
    reference, ours = pair(VACE)
    latents, context, _, control = inputs(VACE)
    scales = torch.full((len(VACE.vace_layers),), scale)
    (expected,) = reference(latents, SCALAR, context, None, control, scales, return_dict=False)
    assert expected.abs().max() > 1
    figures.within(TOLERANCE, f"VACE, scale {scale}", run(ours, VACE, SCALAR, scale), expected)


@torch.no_grad()
def test_vace_takes_a_timestep_per_frame() -> None:
    """diffusers' VACE does not; equal ones must mean what a scalar means, and others not."""
    model = random_dit(VACE)
    expected = run(model, VACE, SCALAR)
    frames = SCALAR[:, None].expand(2, 4)
    assert (run(model, VACE, frames) - expected).abs().max() <= TOLERANCE
    assert (run(model, VACE, PER_FRAME) - expected).abs().max() > 0.1


@torch.no_grad()
def test_vace_at_scale_0_is_the_transformer_without_it() -> None:
    model = random_dit(VACE)
    plain = DiT(replace(VACE, vace_layers=(), vace_in_channels=None))
    state = {n: t for n, t in model.state_dict().items() if not n.startswith("vace_")}
    plain.load_state_dict(state, strict=True)
    latents, context, _, _ = inputs(VACE)
    assert torch.equal(run(model, VACE, SCALAR, scale=0.0), plain(latents, SCALAR, context))


@pytest.mark.parametrize("config", [IMAGE, TWO_IMAGES, VACE], ids=["image", "two images", "VACE"])
@torch.no_grad()
def test_what_is_prepared_once_serves_every_step(config: DiTConfig) -> None:
    """Keys and values of text and image change no bit, whatever the timesteps and latents."""
    model = random_dit(config)
    latents, context, image, control = inputs(config)
    cache = model.prepare_context(context, image)
    for timesteps in (SCALAR, PER_FRAME):
        again = model.prepare_context(context.clone(), None if image is None else image.clone())
        once = model(latents, timesteps, cache, control)
        assert torch.equal(once, model(latents, timesteps, again, control))
        latents = latents.roll(1, -1)
    tensors = 2 if image is None else 4
    assert {len(entry) for entry in (*cache.keys_values, *cache.vace_keys_values)} == {tensors}


@EACH
@TIMESTEPS
@torch.no_grad()
def test_one_row_under_two_texts_is_computed_once_up_to_the_text(
    config: DiTConfig, timesteps: Tensor
) -> None:
    """Guidance's two halves differ by their texts alone; their sum of roundings may differ."""
    model = random_dit(config)
    latents, context, image, control = inputs(config)
    latents, timesteps = latents[:1], timesteps[:1]
    control = None if control is None else control[:1]
    cache = model.prepare_context(context, image)
    rows: list[int] = []
    for block in model.blocks[:2]:
        block.self_attn.register_forward_hook(lambda _, given, out: rows.append(len(out)))

    def both(repeat: bool) -> Tensor:
        def form(x: Tensor) -> Tensor:
            return torch.cat([x, x]) if repeat else x.expand(2, *x.shape[1:])

        shown = None if control is None else form(control)
        return model(form(latents), form(timesteps), cache, shown)

    expected, found = both(repeat=True), both(repeat=False)
    assert rows == [2, 2, 1, 2] and found.shape == expected.shape
    assert (expected[0] - expected[1]).abs().max() > 0.1
    assert (found - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("config", [IMAGE, VACE], ids=["image", "VACE"])
@torch.no_grad()
def test_one_image_or_control_serves_a_whole_batch(config: DiTConfig) -> None:
    """Guidance runs two texts with one picture."""
    model = random_dit(config)
    latents, context, image, control = inputs(config)
    velocities = []
    for copies in (1, 2):
        shown, steered = (
            None if given is None else given[:1].repeat(copies, *[1] * (given.ndim - 1))
            for given in (image, control)
        )
        cache = model.prepare_context(context, shown)
        velocities.append(model(latents, SCALAR, cache, steered))
    assert (velocities[0] - velocities[1]).abs().max() <= TOLERANCE


@torch.no_grad()
def test_every_branch_is_heeded() -> None:
    model = random_dit(TWO_IMAGES)
    latents, context, image, _ = inputs(TWO_IMAGES)
    assert image is not None
    swapped = image.roll(TWO_IMAGES.pos_embed_len // 2, 1)  # last frame first
    views = [model(latents, SCALAR, model.prepare_context(context, x)) for x in (image, swapped)]
    assert (views[0] - views[1]).abs().max() > 1e-3
    with pytest.raises(AssertionError):
        model.prepare_context(context, image[:, :5])
    with pytest.raises(AssertionError):
        model.prepare_context(context)


@pytest.mark.parametrize("config", [TWO_IMAGES, VACE], ids=["two images", "VACE"])
def test_autocast_gives_every_parameter_a_gradient(config: DiTConfig) -> None:
    model = random_dit(config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        velocity = run(model, config, PER_FRAME)
    velocity.square().mean().backward()
    assert velocity.dtype == torch.float32
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("config", [TWO_IMAGES, VACE], ids=["two images", "VACE"])
def test_bf16_weights_keep_the_residual_streams_in_fp32(config: DiTConfig) -> None:
    model = random_dit(config)
    with torch.no_grad():
        exact = run(model, config, SCALAR)
    model.to(torch.bfloat16)
    seen: dict[str, tuple[torch.dtype, ...]] = {}
    for name, block in model.named_modules():
        if isinstance(block, DiTBlock):
            block.register_forward_hook(
                lambda _, __, out, name=name: seen.update(
                    {name: tuple(x.dtype for x in (out if isinstance(out, tuple) else (out,)))}
                )
            )
    with torch.inference_mode():
        velocity = run(model, config, SCALAR)
    assert len(seen) == config.num_layers + len(config.vace_layers)
    for name, dtypes in seen.items():
        hint = (torch.bfloat16,) if name.startswith("vace_") else ()
        assert dtypes == (torch.float32, *hint)
    assert (velocity - exact).abs().mean() < 0.03 * exact.abs().mean()


def test_a_new_vace_branch_says_nothing() -> None:
    model = DiT(VACE)
    model.init_weights()
    nn.init.normal_(model.head.head.weight)
    assert torch.equal(run(model, VACE, SCALAR), run(model, VACE, SCALAR, scale=0.0))


@EACH
def test_names_map_one_to_one(config: DiTConfig) -> None:
    with torch.device("meta"):
        theirs = build_reference(config).state_dict()
        ours = DiT(config).state_dict()
    there = rename(theirs, DIT_DIFFUSERS)
    back = rename(ours, inverse(DIT_DIFFUSERS))
    assert set(there.values()) == set(ours) and set(back.values()) == set(theirs)
    assert {name: there[back[name]] for name in ours} == {name: name for name in ours}
    assert {name: back[there[name]] for name in theirs} == {name: name for name in theirs}
    for name, tensor in theirs.items():
        assert tensor.shape == ours[there[name]].shape, name


def test_the_names_are_wans() -> None:
    """The names that LoRA and single files use; `norm_added_q` is in some folders, for nobody."""
    image = "condition_embedder.image_embedder"
    pairs = {
        f"{image}.norm1.weight": "img_emb.proj.0.weight",
        f"{image}.ff.net.0.proj.bias": "img_emb.proj.1.bias",
        f"{image}.ff.net.2.weight": "img_emb.proj.3.weight",
        f"{image}.norm2.bias": "img_emb.proj.4.bias",
        f"{image}.pos_embed": "img_emb.emb_pos",
        "blocks.11.attn2.add_k_proj.weight": "blocks.11.cross_attn.k_img.weight",
        "blocks.11.attn2.add_v_proj.bias": "blocks.11.cross_attn.v_img.bias",
        "blocks.11.attn2.norm_added_k.weight": "blocks.11.cross_attn.norm_k_img.weight",
        "vace_patch_embedding.weight": "vace_patch_embedding.weight",
        "vace_blocks.0.proj_in.weight": "vace_blocks.0.before_proj.weight",
        "vace_blocks.7.proj_out.bias": "vace_blocks.7.after_proj.bias",
        "vace_blocks.7.norm2.weight": "vace_blocks.7.norm3.weight",
        "vace_blocks.7.scale_shift_table": "vace_blocks.7.modulation",
        "proj_out.weight": "head.head.weight",
    }
    assert rename([*pairs, "blocks.3.attn2.norm_added_q.weight"], DIT_DIFFUSERS) == pairs


@EACH
def test_configs_survive_the_round_trip(config: DiTConfig) -> None:
    theirs = json.loads(json.dumps(dit_config_to_diffusers(config)))
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in DiT(config).state_dict().items()}
        saved = json.loads(build_reference(config).to_json_string())
    assert dit_config(shapes, theirs) == config
    # What diffusers itself would write of this network reads the same.
    assert dit_config(shapes, {**saved, "text_len": config.text_len}) == config
    assert saved["_class_name"] == theirs["_class_name"]


@pytest.mark.parametrize("layers", [[1, 2, 3], [0, 2, 1], [0, 0, 3], [0, 2, 9]])
def test_layers_that_no_vace_has_are_refused(layers: list[int]) -> None:
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in DiT(VACE).state_dict().items()}
    theirs = {**dit_config_to_diffusers(VACE), "vace_layers": layers}
    with pytest.raises(ValueError, match="vace_layers"):
        dit_config(shapes, theirs)
