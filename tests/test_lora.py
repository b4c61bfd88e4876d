"""LoRAs of every dialect change the weights as the equation says, and what cannot is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.loaders import lora_conversion_utils
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from sora_cli.errors import SoraError, UsageError, WeightsError
from sora_cli.models.dit import DiT, DiTConfig
from sora_cli.weights import keymaps
from sora_cli.weights.lora import Merger, merge
from sora_cli.weights.lora_arguments import Lora
from sora_cli.weights.lora_dialects import read_lora

CONFIG = DiTConfig(
    num_layers=2, hidden_size=24, num_heads=2, ffn_dim=40, in_channels=4, out_channels=4,
    text_dim=12, text_len=8,
)  # fmt: skip
RANK = 3
# One of each place that a published LoRA changes within the blocks.
IN_BLOCKS = (
    "blocks.0.self_attn.q", "blocks.1.self_attn.o", "blocks.0.cross_attn.k",
    "blocks.1.cross_attn.v", "blocks.1.ffn.0", "blocks.0.ffn.2",
)  # fmt: skip
ELSEWHERE = ("time_projection.1", "time_embedding.0", "text_embedding.2", "head.head")
DIALECTS = ("kohya", "kohya_fun", "comfy", "comfy_ab", "lightx2v", "bare", "diffsynth", "diffusers")


@pytest.fixture
def state() -> dict[str, Tensor]:
    """A transformer's parameters, all of them random."""
    generator = torch.Generator().manual_seed(1)
    shapes = {name: tensor.shape for name, tensor in DiT(CONFIG).state_dict().items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def pairs(
    state: Mapping[str, Tensor], modules: tuple[str, ...]
) -> dict[str, tuple[Tensor, Tensor]]:
    """A random (up, down) for each module."""
    generator = torch.Generator().manual_seed(2)

    def pair(weight: Tensor) -> tuple[Tensor, Tensor]:
        out, inputs = weight.flatten(1).shape
        return (
            torch.randn(out, RANK, generator=generator) / 4,
            torch.randn(RANK, inputs, generator=generator) / 4,
        )

    return {module: pair(state[f"{module}.weight"]) for module in modules}


def named(dialect: str, module: str) -> tuple[str, str, str]:
    """What a dialect calls a module, its down and its up matrix."""
    if dialect == "diffusers":
        theirs = keymaps.rename([f"{module}.weight"], keymaps.inverse(keymaps.DIT_DIFFUSERS))
        path = theirs[f"{module}.weight"].removesuffix(".weight")
        return f"transformer.{path}", "lora_A.weight", "lora_B.weight"
    flat = module.replace(".", "_")
    return {
        "kohya": (f"lora_unet_{flat}", "lora_down.weight", "lora_up.weight"),
        "kohya_fun": (f"lora_unet__{flat}", "lora_down.weight", "lora_up.weight"),
        "comfy": (f"diffusion_model.{module}", "lora_down.weight", "lora_up.weight"),
        "comfy_ab": (f"diffusion_model.{module}", "lora_A.weight", "lora_B.weight"),
        "lightx2v": (f"model.diffusion_model.{module}", "lora_A.weight", "lora_B.weight"),
        "bare": (module, "lora_A.weight", "lora_B.weight"),
        "diffsynth": (f"pipe.dit.{module}", "lora_A.default.weight", "lora_B.default.weight"),
    }[dialect]


def write(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> Lora:
    save_file({name: t.clone().contiguous() for name, t in tensors.items()}, path, metadata)
    return Lora(path=path)


def write_pairs(
    path: Path,
    dialect: str,
    changes: Mapping[str, tuple[Tensor, Tensor]],
    alpha: float | None = None,
    metadata: dict[str, str] | None = None,
) -> Lora:
    tensors = {}
    for module, (up, down) in changes.items():
        name, down_name, up_name = named(dialect, module)
        tensors |= {f"{name}.{down_name}": down, f"{name}.{up_name}": up}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return write(path, tensors, metadata)


def by_hand(
    state: Mapping[str, Tensor], changes: Mapping[str, tuple[Tensor, Tensor]], factor: float
) -> dict[str, Tensor]:
    """W + factor · up @ down, in float64."""
    merged = dict(state)
    for module, (up, down) in changes.items():
        weight = state[f"{module}.weight"].double()
        delta = (up.double() @ down.double()).reshape(weight.shape)
        merged[f"{module}.weight"] = weight + factor * delta
    return merged


def furthest(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    differences = ((found[n].double() - wanted[n].double()).abs().max() for n in wanted)
    return max(float(difference) for difference in differences)


def fails(state: dict[str, Tensor], lora: Lora) -> SoraError:
    """The error of merging; nothing may have been merged."""
    before = dict(state)
    with pytest.raises(SoraError) as caught:
        merge(state, [lora])
    assert all(state[name] is before[name] for name in before)
    assert caught.value.hint and "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("alpha", [None, 1.5])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_merges_as_by_hand(
    tmp_path: Path, state: dict[str, Tensor], dialect: str, alpha: float | None
) -> None:
    modules = IN_BLOCKS if dialect.startswith("kohya") else IN_BLOCKS + ELSEWHERE
    changes = pairs(state, modules)
    lora = write_pairs(tmp_path / "l.safetensors", dialect, changes, alpha)
    wanted = by_hand(state, changes, 0.7 * (1 if alpha is None else alpha / RANK))
    report = merge(state, [replace(lora, scale=0.7)])
    assert furthest(state, wanted) <= 1e-6
    assert (report.matched, report.parameters, report.notes) == (len(modules), len(state), ())


def test_kohya_finds_every_module_of_every_family(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """Underscores for dots lose nothing: each module has one flat name, and it is found again."""
    modules = {name.rpartition(".")[0] for name in state if name.endswith(".weight")}
    modules |= {f"blocks.31.cross_attn.{m}" for m in ("k_img", "v_img", "norm_k_img")}
    modules |= {"img_emb.proj.1", "vace_patch_embedding", "vace_blocks.3.before_proj"}
    modules |= {"vace_blocks.7.after_proj", "vace_blocks.10.self_attn.norm_q"}
    pair = (torch.ones(2, 1), torch.ones(1, 2))
    read = read_lora(write_pairs(tmp_path / "l", "kohya", dict.fromkeys(modules, pair)))
    assert set(read.deltas) == {f"{module}.weight" for module in modules}
    read.source.close()


def test_the_names_are_those_that_diffusers_converts_to(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """diffusers' own converter makes its dialect of Comfy's; both merge to the same."""
    linears = (f"blocks.{i}.{m}" for i in (0, 1) for m in (
        *(f"{a}_attn.{p}" for a in ("self", "cross") for p in "qkvo"), "ffn.0", "ffn.2"
    ))  # fmt: skip
    changes = pairs(state, (*linears, "head.head", "time_projection.1"))
    comfy = write_pairs(tmp_path / "comfy.safetensors", "comfy", changes)
    original = {
        f"diffusion_model.{m}.{role}.weight": tensor
        for m, (up, down) in changes.items()
        for role, tensor in (("lora_down", down), ("lora_up", up))
    }
    convert = lora_conversion_utils._convert_non_diffusers_wan_lora_to_diffusers
    theirs = write(tmp_path / "diffusers.safetensors", convert(original))
    ours, converted = dict(state), dict(state)
    assert merge(ours, [comfy]).matched == merge(converted, [theirs]).matched == len(changes)
    assert furthest(ours, converted) == 0


def test_differences_are_added_to_norms_head_biases_and_modulation(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    changed = {
        "blocks.0.norm3.diff": "blocks.0.norm3.weight",
        "blocks.0.norm3.diff_b": "blocks.0.norm3.bias",
        "blocks.1.self_attn.norm_q.diff": "blocks.1.self_attn.norm_q.weight",
        "blocks.1.ffn.2.diff_b": "blocks.1.ffn.2.bias",
        "blocks.1.diff_m": "blocks.1.modulation",
        "blocks.0.modulation.diff": "blocks.0.modulation",
        "head.head.diff": "head.head.weight",
        "head.head.diff_b": "head.head.bias",
        "head.diff_m": "head.modulation",
        "patch_embedding.diff": "patch_embedding.weight",
    }
    tensors = {key: torch.randn_like(state[name]) for key, name in changed.items()}
    lora = write(
        tmp_path / "l.safetensors", {f"diffusion_model.{k}": t for k, t in tensors.items()}
    )
    wanted = dict(state)
    for key, name in changed.items():
        wanted[name] = state[name] - 2 * tensors[key]
    assert merge(state, [replace(lora, scale=-2)]).matched == len(changed)
    assert furthest(state, wanted) <= 1e-6


@pytest.mark.parametrize("flat", [False, True])
def test_a_convolution_takes_matrices_of_either_form(
    tmp_path: Path, state: dict[str, Tensor], flat: bool
) -> None:
    changes = pairs(state, ("patch_embedding",))
    ((up, down),) = changes.values()
    width, *kernel = state["patch_embedding.weight"].shape
    wanted = by_hand(state, changes, 1)
    tensors = {
        "diffusion_model.patch_embedding.lora_down.weight": down
        if flat
        else down.reshape(RANK, *kernel),
        "diffusion_model.patch_embedding.lora_up.weight": up
        if flat
        else up.reshape(width, RANK, 1, 1, 1),
    }
    merge(state, [write(tmp_path / "l.safetensors", tensors)])
    assert furthest(state, wanted) <= 1e-6


def test_bfloat16_weights_are_merged_in_float32_and_rounded_once(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """Many small differences, each below bfloat16's resolution, are not lost one by one."""
    state = {name: tensor.bfloat16() for name, tensor in state.items()}
    key = "diffusion_model.head.head.diff"
    small = torch.full_like(state["head.head.weight"], 1e-3).float()
    lora = write(tmp_path / "l.safetensors", {key: small})
    wanted = (state["head.head.weight"].float() + 4 * small).bfloat16()
    merge(state, [lora] * 4)
    assert state["head.head.weight"].dtype == torch.bfloat16
    assert (state["head.head.weight"].float() - wanted.float()).abs().max() == 0


@settings(max_examples=15, deadline=None)
@given(scales=st.lists(st.floats(-3, 3), min_size=1, max_size=3))
def test_loras_add_up(tmp_path_factory: pytest.TempPathFactory, scales: list[float]) -> None:
    """Merging a file at several scales is merging it once at their sum."""
    state = {"head.head.weight": torch.randn(16, 24)}
    changes = pairs(state, ("head.head",))
    lora = write_pairs(tmp_path_factory.mktemp("l") / "l.safetensors", "comfy", changes)
    wanted = by_hand(state, changes, sum(scales))
    merge(state, [replace(lora, scale=scale) for scale in scales])
    assert furthest(state, wanted) <= 3e-6


def test_the_alpha_of_an_adapter_configuration_counts(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """diffusers keeps alphas in the header, peft beside the file; both may differ by module."""
    changes = pairs(state, ("blocks.0.self_attn.q", "blocks.0.ffn.0"))
    said = {"lora_alpha": 6, "alpha_pattern": {"blocks.0.ffn.net.0.proj": 12}}
    header = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in said.items()})}
    wanted = by_hand(state, {m: c for m, c in changes.items() if "self" in m}, 6 / RANK)
    wanted = by_hand(wanted, {m: c for m, c in changes.items() if "ffn" in m}, 12 / RANK)
    first, second = dict(state), dict(state)
    merge(first, [write_pairs(tmp_path / "d.safetensors", "diffusers", changes, None, header)])
    assert furthest(first, wanted) <= 1e-6
    folder = tmp_path / "peft"
    folder.mkdir()
    lora = write_pairs(folder / "adapter_model.safetensors", "diffusers", changes)
    (folder / "adapter_config.json").write_text(json.dumps(said))
    merge(second, [replace(lora, path=folder)])
    assert furthest(second, first) == 0
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "use_rslora": True}))
    with Merger({n: t.shape for n, t in state.items()}, [lora]) as merger:
        merged = merger.apply("blocks.0.ffn.0.weight", state["blocks.0.ffn.0.weight"])
    wanted = by_hand(state, changes, 6 / RANK**0.5)
    assert (merged - wanted["blocks.0.ffn.0.weight"]).abs().max() <= 1e-6


def test_keys_that_match_nothing_are_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    changes = pairs(state, IN_BLOCKS)
    changes["blocks.9.self_attn.q"] = changes["blocks.0.self_attn.q"]
    error = fails(state, write_pairs(tmp_path / "l.safetensors", "comfy", changes))
    assert isinstance(error, WeightsError)
    assert "blocks.9.self_attn.q" in error.message and "blocks.0" not in error.message


def test_a_lora_of_another_size_says_of_which(tmp_path: Path) -> None:
    """The width tells which of the published models it was made for."""
    shapes = {"blocks.0.self_attn.q.weight": (3072, 3072)}
    up, down = torch.ones(5120, 1), torch.ones(1, 5120)
    changes = {"blocks.0.self_attn.q": (up, down)}
    lora = write_pairs(tmp_path / "l.safetensors", "kohya", changes)
    with pytest.raises(WeightsError, match="do not fit.*5120×1 and 1×5120 for 3072×3072") as caught:
        Merger(shapes, [lora])
    assert "14B" in str(caught.value.hint) and "wan2.2-ti2v-5b" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("module", "hint"),
    [
        ("blocks.0.cross_attn.k_img", "sees images"),
        ("vace_blocks.0.self_attn.q", "VACE"),
        ("blocks.0.no_such.thing", "choose the model"),
    ],
)
def test_a_lora_for_a_branch_that_is_not_there_says_so(
    tmp_path: Path, state: dict[str, Tensor], module: str, hint: str
) -> None:
    changes = {module: (torch.ones(24, 1), torch.ones(1, 24))}
    error = fails(state, write_pairs(tmp_path / "l.safetensors", "comfy", changes))
    assert module in error.message and hint in str(error.hint)


def test_a_lora_without_effect_is_said(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """An untrained LoRA, whose up matrices are zero, would else be a puzzle."""
    changes = pairs(state, IN_BLOCKS)
    zero = {module: (torch.zeros_like(up), down) for module, (up, down) in changes.items()}
    nothing = write_pairs(tmp_path / "zero.safetensors", "comfy", zero)
    trained = write_pairs(tmp_path / "trained.safetensors", "comfy", changes)
    notes = merge(dict(state), [trained, nothing, replace(trained, scale=0.0)]).notes
    assert len(notes) == 2
    assert "zero.safetensors" in notes[0] and "all zero" in notes[0]
    assert "trained.safetensors" in notes[1] and "scale is 0" in notes[1]


A = "diffusion_model.blocks.0.self_attn.q"
ONE_PAIR = {
    f"{A}.lora_down.weight": torch.ones(RANK, 24),
    f"{A}.lora_up.weight": torch.ones(24, RANK),
}
DAMAGED = {
    "half a pair": {f"{A}.lora_down.weight": torch.ones(RANK, 24)},
    "an alpha of nothing": {**ONE_PAIR, "diffusion_model.blocks.0.ffn.0.alpha": torch.ones(())},
    "an infinite alpha": {**ONE_PAIR, f"{A}.alpha": torch.tensor(torch.inf)},
    "an alpha that is a list": {**ONE_PAIR, f"{A}.alpha": torch.ones(2)},
    "no rank": {
        f"{A}.lora_down.weight": torch.ones(0, 24), f"{A}.lora_up.weight": torch.ones(24, 0),
    },
    "vectors": {f"{A}.lora_down.weight": torch.ones(24), f"{A}.lora_up.weight": torch.ones(24)},
    "twice": {**ONE_PAIR, f"{A}.lora_A.weight": torch.ones(RANK, 24)},
    "not finite": {**ONE_PAIR, f"{A}.lora_up.weight": torch.full((24, RANK), torch.nan)},
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_said_to_be(tmp_path: Path, state: dict[str, Tensor], kind: str) -> None:
    error = fails(state, write(tmp_path / "l.safetensors", DAMAGED[kind]))
    assert isinstance(error, WeightsError) and "damaged" in error.message


OTHERS = {
    "DoRA": {**ONE_PAIR, f"{A}.dora_scale": torch.ones(24)},
    "LoHa": {f"{A}.hada_w1_a": torch.ones(24, 2)},
    "LoKr": {f"{A}.lokr_w1": torch.ones(2, 2)},
    "whole model": {f"{A}.weight": torch.ones(24, 24)},
    "no LoRA": {"something": torch.ones(2)},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_another_kind_are_told_apart(
    tmp_path: Path, state: dict[str, Tensor], kind: str
) -> None:
    error = fails(state, write(tmp_path / "l.safetensors", OTHERS[kind]))
    assert isinstance(error, UsageError) and kind in error.message


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0{}      ", None])
def test_files_that_cannot_be_read_end_in_one_line(
    tmp_path: Path, state: dict[str, Tensor], content: bytes | None
) -> None:
    path = tmp_path / "l.safetensors"
    if content is not None:
        path.write_bytes(content)
    fails(state, Lora(path=path))


@pytest.mark.parametrize("text", ["{", "[]", "7", '{"transformer.alpha_pattern": 3}', "[" * 9999])
def test_a_hostile_adapter_configuration_ends_in_one_line(
    tmp_path: Path, state: dict[str, Tensor], text: str
) -> None:
    lora = write(tmp_path / "l.safetensors", ONE_PAIR, {"lora_adapter_metadata": text})
    assert "damaged" in fails(state, lora).message


def test_reading_gives_the_original_names(tmp_path: Path, state: dict[str, Tensor]) -> None:
    lora = write_pairs(tmp_path / "l.safetensors", "diffusers", pairs(state, IN_BLOCKS))
    read = read_lora(lora)
    assert set(read.deltas) == {f"{module}.weight" for module in IN_BLOCKS}
    assert read.hidden_size == CONFIG.hidden_size
    read.source.close()
