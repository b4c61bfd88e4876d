"""What loading promises: the chosen dtype, one copy, all of it or an error, freed in the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sora_cli.bench import loading
from sora_cli.errors import WeightsError
from sora_cli.models.dit import DiT, DiTConfig
from sora_cli.models.fp8 import Fp8Linear, quantise
from sora_cli.runtime.plan import Placement
from sora_cli.weights import load
from sora_cli.weights.layouts import recognise
from sora_cli.weights.lora import merge
from sora_cli.weights.lora_arguments import Lora
from sora_cli.weights.tensors import open_tensors
from tests import wan_folders

NETWORKS: dict[str, Any] = {
    "transformer": load.dit,
    "vae": load.vae,
    "text_encoder": load.text_encoder,
}
PART = "model.safetensors"
CONFIG = DiTConfig(
    num_layers=2, hidden_size=128, num_heads=1, ffn_dim=40, in_channels=16, out_channels=16,
    text_dim=12, text_len=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Wan 2.1 folder as diffusers saves it; not to be changed."""
    return wan_folders.save(wan_folders.wan21(), tmp_path_factory.mktemp("saved") / "wan")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(saved, tmp_path / "wan"))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """A transformer's parameters under original names, all of them random."""
    generator = torch.Generator().manual_seed(1)
    shapes = {name: tensor.shape for name, tensor in DiT(CONFIG).state_dict().items()}
    return {name: torch.randn(shape, generator=generator) / 8 for name, shape in shapes.items()}


@pytest.fixture
def part(state: dict[str, Tensor], tmp_path: Path) -> Path:
    """That transformer as a single file."""
    save_file(state, tmp_path / PART)
    return tmp_path / PART


def velocity(dit: DiT) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(1, CONFIG.in_channels, 2, 4, 6, generator=generator)
    context = torch.randn(1, CONFIG.text_len, CONFIG.text_dim, generator=generator)
    with torch.no_grad():
        return dit(latents, torch.tensor([417.0]), context)


def edit(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; `...` removes one."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def load_part(part: Path, kind: str = "transformer") -> None:
    with NETWORKS[kind](part, device="cpu", dtype=torch.float32):
        pass


# ---------------------------------------------------------------- what is promised


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_dtype_is_chosen_not_adopted(kind: str, dtype: torch.dtype, saved: Path) -> None:
    with NETWORKS[kind](saved / kind, device="cpu", dtype=dtype) as network:
        tensors = [*network.parameters(), *network.buffers()]
        assert {tensor.dtype for tensor in tensors} == {dtype}
        assert not any(tensor.is_meta or tensor.requires_grad for tensor in tensors)
        assert not network.training


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_folder_of_a_whole_model_will_do(kind: str, saved: Path) -> None:
    with (
        NETWORKS[kind](saved, device="cpu", dtype=torch.float32) as whole,
        NETWORKS[kind](saved / kind, device="cpu", dtype=torch.float32) as alone,
    ):
        assert whole.config == alone.config
    assert load.latent_channels(saved) == load.latent_channels(saved / "vae") == wan_folders.Z_21


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_is_freed_whoever_still_holds_it(kind: str, saved: Path) -> None:
    with NETWORKS[kind](saved / kind, device="cpu", dtype=torch.float32) as network:
        held = [network, *network.children()]
    assert all(tensor.is_meta for module in held for tensor in module.parameters())


def test_a_network_is_freed_after_an_error_too(saved: Path) -> None:
    with (
        pytest.raises(KeyError),
        load.vae(saved, device="cpu", dtype=torch.float32) as network,
    ):
        raise KeyError
    assert all(tensor.is_meta for tensor in network.parameters())


def test_loras_are_merged_before_the_weights_are_rounded(
    state: dict[str, Tensor], part: Path
) -> None:
    generator = torch.Generator().manual_seed(3)
    up, down = (torch.randn(shape, generator=generator) for shape in ((128, 2), (2, 128)))
    name = "blocks.1.self_attn.q"
    lora = {f"diffusion_model.{name}.lora_up.weight": up,
            f"diffusion_model.{name}.lora_down.weight": down}  # fmt: skip
    save_file(lora, part.parent / "lora.safetensors")
    loras, told = [Lora(path=part.parent / "lora.safetensors", scale=0.5)], []
    with load.dit(
        part, device="cpu", dtype=torch.bfloat16, observer=told.append, loras=loras
    ) as dit:
        found = dit.state_dict()
        merged = dict(state)
        merge(merged, loras)
        assert all(torch.equal(found[n], tensor.bfloat16()) for n, tensor in merged.items())
        by_hand = state[f"{name}.weight"].double() + 0.5 * up.double() @ down.double()
        torch.testing.assert_close(merged[f"{name}.weight"].double(), by_hand, atol=1e-6, rtol=0)
    assert [report.matched for report in told] == [1]


def scaled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with its blocks in 8 bits, as ComfyUI writes it."""
    out = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in state.items():
        if name.startswith("blocks.") and tensor.ndim == 2:
            weight = quantise(tensor)
            out[name] = weight.values
            out[name.removesuffix("weight") + "scale_weight"] = weight.scale
        else:
            out[name] = tensor
    return {f"model.diffusion_model.{name}": tensor for name, tensor in out.items()}


def test_weights_in_8_bits_are_kept_or_widened_alike(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(scaled(state), tmp_path / PART)
    with load.dit(tmp_path / PART, device="cpu", dtype=torch.float32) as wide:
        wanted = velocity(wide)
        assert {tensor.dtype for tensor in wide.parameters()} == {torch.float32}
    with load.dit(tmp_path / PART, device="cpu", dtype=torch.float32, storage="fp8") as kept:
        modules = [m for m in kept.modules() if isinstance(m, Fp8Linear)]
        assert len(modules) == 10 * CONFIG.num_layers
        assert {m.weight_fp8.dtype for m in modules} == {torch.float8_e4m3fn}
        assert torch.equal(velocity(kept), wanted)


def test_casting_on_load_is_quantising_what_the_file_has(
    state: dict[str, Tensor], part: Path
) -> None:
    with load.dit(part, device="cpu", dtype=torch.bfloat16, storage="fp8") as dit:
        for name, module in dit.named_modules():
            if isinstance(module, Fp8Linear):
                assert torch.equal(
                    module.weight_fp8.view(torch.uint8),
                    quantise(state[f"{name}.weight"]).values.view(torch.uint8),
                )
        assert dit.head.head.weight.dtype == torch.bfloat16


def test_a_lora_changes_weights_that_are_in_8_bits(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(scaled(state), tmp_path / PART)
    name = "blocks.0.ffn.0.weight"
    save_file(
        {f"diffusion_model.{name[:-7]}.diff": torch.ones(40, 128)}, tmp_path / "l.safetensors"
    )
    loras = [Lora(path=tmp_path / "l.safetensors")]
    plain = quantise(state[name]).dequantised(torch.float32)
    for storage in ("dtype", "fp8"):
        with load.dit(
            tmp_path / PART, device="cpu", dtype=torch.float32, loras=loras, storage=storage
        ) as dit:
            merged = plain + 1
            wanted = merged if storage == "dtype" else quantise(merged).dequantised(torch.float32)
            assert torch.equal(dit.blocks[0].ffn[0].weight, wanted)


def test_comfys_umt5_in_8_bits_is_the_same_encoder(saved: Path, tmp_path: Path) -> None:
    """Transformers' names, scaled weights, a marker and a tokenizer that is no part of it."""
    theirs = load_file(saved / "text_encoder" / PART)
    plain = dict(theirs)
    theirs["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    theirs["spiece_model"] = torch.zeros(3, dtype=torch.uint8)
    for name, tensor in plain.items():
        if name.startswith("encoder.block.") and tensor.ndim == 2 and "bias" not in name:
            weight = quantise(tensor)
            theirs[name] = weight.values
            theirs[name.removesuffix("weight") + "scale_weight"] = weight.scale
            plain[name] = weight.dequantised(torch.float32)
    save_file(theirs, tmp_path / "fp8.safetensors")
    save_file(plain, tmp_path / "plain.safetensors")
    ids = torch.tensor([[3, 4, 5, 1, 0, 0]])
    outputs = []
    for part, storage in (("plain", "dtype"), ("fp8", "dtype"), ("fp8", "fp8")):
        with (
            load.text_encoder(
                tmp_path / f"{part}.safetensors", device="cpu", dtype=torch.float32,
                storage=storage,
            ) as encoder,
            torch.no_grad(),
        ):  # fmt: skip
            outputs.append(encoder(ids, (ids != 0).long()))
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_gguf_files_are_loaded(state: dict[str, Tensor], tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "wan.gguf", "wan")
    for name, tensor in state.items():
        # As converters write them: no more than four axes.
        writer.add_tensor(name, (tensor.flatten(0, 1) if tensor.ndim > 4 else tensor).numpy())
    writer.add_array("comfy.gguf.orig_shape.patch_embedding.weight", (128, 16, 1, 2, 2))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with load.dit(tmp_path / "wan.gguf", device="cpu", dtype=torch.float32) as dit:
        assert dit.config == replace(CONFIG, text_len=512)
        assert all(torch.equal(dit.state_dict()[name], t) for name, t in state.items())


def test_a_placement_changes_nothing_on_a_cpu(part: Path) -> None:
    with load.dit(part, device="cpu", dtype=torch.float32) as dit:
        wanted = velocity(dit)
    place = Placement(blocks_resident=1)
    with load.dit(part, device="cpu", dtype=torch.float32, place=place) as dit:
        assert torch.equal(velocity(dit), wanted)


def test_no_second_copy_is_held_and_the_bench_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Peak memory of a process that loads 100 MB, cast on the way from a file of 200 MB."""
    loading.main(
        ["--model", "wan2.1-t2v-1.3b", "--layers", "1", "--stored", "float32", "--repeats", "1"]
    )
    report = json.loads(capsys.readouterr().out)
    assert report["layers"] == 1 and report["speed_ratio"] > 0
    assert report["bytes"] == 2 * report["resident_bytes"] > 2e8
    grown, resident = report["load_peak_bytes"], report["resident_bytes"]
    assert 0.9 * resident < grown < resident + 24e6, f"{grown / resident:.2f} copies"


# ---------------------------------------------------------------- what is refused


def refuse(part: Path, words: str, kind: str = "transformer") -> None:
    with pytest.raises(WeightsError) as caught:
        load_part(part, kind)
    assert words in caught.value.message, caught.value.message
    assert "\n" not in caught.value.message and caught.value.hint


def change(change_state: Callable[[dict[str, Tensor]], Any], part: Path) -> None:
    state = load_file(part)
    change_state(state)
    save_file(state, part)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: s.pop("blocks.1.modulation"), "blocks.1.modulation is missing"),
        (lambda s: s.update(fps_embedding=torch.ones(2)), "fps_embedding is one too many"),
        (
            lambda s: s.update({"blocks.1.ffn.0.weight": torch.ones(41, 128)}),
            "blocks.1.ffn.0.weight is 41×128, by the rest it would be 40×128",
        ),
        (
            lambda s: s.update({"head.head.weight": torch.ones(2)}),
            "is not whole: head.head.weight is 2, not of 2 axes",
        ),
        (
            lambda s: s.update({"patch_embedding.weight": torch.ones(2, 3)}),
            "is not whole: patch_embedding.weight is 2×3, not of 5 axes",
        ),
        (lambda s: s.update({"patch_embedding.weight": torch.ones(128, 16, 1, 0, 2)}), "is not"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    damage: Callable[[dict[str, Tensor]], Any], words: str, part: Path
) -> None:
    change(damage, part)
    refuse(part, words)


def test_another_network_is_named(saved: Path) -> None:
    refuse(saved / "vae", "is a video autoencoder, not a diffusion transformer")
    refuse(saved / "transformer", "is a diffusion transformer, not a text encoder", "text_encoder")


def test_no_nonsense_in_a_config_escapes(folder: Path) -> None:
    """What shapes decide is not looked at; what they cannot show is right or refused."""
    refused = []
    for kind in NETWORKS:
        path = folder / kind / "config.json"
        original = path.read_text()
        for key in json.loads(original):
            for nonsense in (..., None, "three", -1, 0, [1], {}, True, float("nan")):
                edit(path, **{key: nonsense})
                try:
                    with closing(open_tensors(folder / kind)) as source:
                        recognise(source)
                except WeightsError as error:
                    assert "\n" not in error.message and str(path) in error.message, key
                    refused.append((key, nonsense))
            path.write_text(original)
    keys = {key for key, _ in refused}
    assert keys == {
        "num_attention_heads", "attention_head_dim", "eps", "latents_mean", "latents_std",
        "relative_attention_max_distance", "layer_norm_epsilon",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_a_config_that_is_no_object_is_refused(text: str, folder: Path) -> None:
    (folder / "vae" / "config.json").write_text(text)
    refuse(folder / "vae", "config.json", "vae")


def test_a_tensor_is_read_once_and_only_when_its_turn_comes(
    part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that loading is one pass over the file, and a mistake in shapes costs no reading."""
    read: list[str] = []
    source = open_tensors(part)
    original = type(source).read

    def watched(self: Any, name: str, **options: Any) -> Tensor:
        read.append(name)
        return original(self, name, **options)

    monkeypatch.setattr(type(source), "read", watched)
    with closing(source):
        load_part(part)
    assert sorted(read) == sorted(source.tensors)
    read.clear()
    change(lambda s: s.pop("blocks.1.modulation"), part)
    refuse(part, "is missing")
    assert not read
