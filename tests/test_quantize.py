"""Weights in 8 bits: files of both conventions read as q · scale, and layers that keep them so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from sora_cli.errors import WeightsError
from sora_cli.models.dit import DiT, DiTConfig
from sora_cli.models.fp8 import (
    FP8_DTYPES,
    Fp8Linear,
    Fp8Weight,
    fp8_weights,
    hold_fp8,
    quantise,
)
from sora_cli.models.text_encoder import TextEncoder, TextEncoderConfig
from sora_cli.weights.quantize import Dequantiser, is_quantised
from sora_cli.weights.tensors import open_tensors

CONFIG = DiTConfig(
    num_layers=2, hidden_size=24, num_heads=2, ffn_dim=40, in_channels=4, out_channels=4,
    text_dim=12, text_len=8,
)  # fmt: skip
E4M3, E5M2 = FP8_DTYPES
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OUT, IN, BLOCKS = 6, 8, 4


def every_value(dtype: torch.dtype) -> Tensor:
    """All the finite numbers of an 8-bit format."""
    values = torch.arange(256, dtype=torch.uint8).view(dtype)
    return values[values.float().isfinite()]


def random_fp8(*shape: int, dtype: torch.dtype = E4M3) -> Tensor:
    """Any of the finite values of the format."""
    values = every_value(dtype)
    return values.view(torch.uint8)[torch.randint(len(values), shape)].view(dtype)


SCALES: Mapping[str, Tensor] = {
    "one number": torch.rand(()),
    "one number in a list": torch.rand(1),
    "one for each output": torch.rand(OUT),
    "a column": torch.rand(OUT, 1),
    "blocks": torch.rand(OUT, BLOCKS, 1),
}


def by_hand(values: Tensor, scale: Tensor) -> Tensor:
    """q · scale, in float32."""
    if scale.ndim == 3:
        blocks = values.float().reshape(OUT, BLOCKS, -1)
        return (blocks * scale).reshape(values.shape)
    return values.float() * (scale.reshape(-1, 1) if scale.numel() > 1 else scale)


def save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata)
    return path


def opened(path: Path) -> Dequantiser:
    return Dequantiser(open_tensors(path))


def json_bytes(content: Any) -> Tensor:
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def legacy(q: Tensor, scale: Tensor) -> tuple[dict[str, Tensor], None]:
    return {
        "scaled_fp8": torch.zeros(2, dtype=q.dtype),
        "blocks.0.ffn.0.weight": q,
        "blocks.0.ffn.0.scale_weight": scale,
        "blocks.0.ffn.0.scale_input": torch.ones(()),
    }, None


def with_tensors(q: Tensor, scale: Tensor) -> tuple[dict[str, Tensor], None]:
    name = "float8_e4m3fn" if q.dtype == E4M3 else "float8_e5m2"
    return {
        "blocks.0.ffn.0.weight": q,
        "blocks.0.ffn.0.weight_scale": scale,
        "blocks.0.ffn.0.input_scale": torch.ones(()),
        "blocks.0.ffn.0.comfy_quant": json_bytes({"format": name}),
    }, None


def with_header(q: Tensor, scale: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
    name = "float8_e4m3fn" if q.dtype == E4M3 else "float8_e5m2"
    layers = {"model.diffusion_model.blocks.0.ffn.0": {"format": name}}
    return {
        "model.diffusion_model.blocks.0.ffn.0.weight": q.view(torch.uint8),
        "model.diffusion_model.blocks.0.ffn.0.weight_scale": scale,
    }, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


@pytest.mark.parametrize("dtype", FP8_DTYPES)
@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("convention", [legacy, with_tensors, with_header])
def test_a_scaled_checkpoint_reads_as_its_products(
    tmp_path: Path, convention: Any, kind: str, dtype: torch.dtype
) -> None:
    q, scale = random_fp8(OUT, IN, dtype=dtype), SCALES[kind]
    tensors, metadata = convention(q, scale)
    tensors["blocks.0.norm3.weight"] = torch.rand(3).bfloat16()
    prefix = "model.diffusion_model." if metadata else ""
    tensors = {n if n.startswith(prefix) else prefix + n: t for n, t in tensors.items()}
    source = opened(save(tmp_path / "m.safetensors", tensors, metadata))
    assert set(source.tensors) == {"blocks.0.ffn.0.weight", "blocks.0.norm3.weight"}
    wanted = by_hand(q, scale)
    for compute in DTYPES:
        found = source.read("blocks.0.ffn.0.weight", dtype=compute)
        assert found.dtype == compute and found.equal(wanted.to(compute))
    assert source.read("blocks.0.ffn.0.weight").equal(wanted)
    kept = source.read_fp8("blocks.0.ffn.0.weight")
    assert kept.values.dtype == dtype and kept.dequantised(torch.float32).equal(wanted)
    assert source.read("blocks.0.norm3.weight").dtype == torch.bfloat16
    assert not source.is_fp8("blocks.0.norm3.weight") and source.is_fp8("blocks.0.ffn.0.weight")
    source.close()


def test_a_checkpoint_that_was_only_cast_reads_as_it_is(tmp_path: Path) -> None:
    """Files in circulation have norms and convolutions in 8 bits too, and no scales."""
    tensors = {
        "a.weight": random_fp8(4, 4),
        "b.bias": random_fp8(4),
        "c.weight": random_fp8(2, 2, 1, 2, 2),
    }
    path = save(tmp_path / "m.safetensors", tensors)
    assert is_quantised(open_tensors(path))
    source = opened(path)
    for name, values in tensors.items():
        assert source.read(name).equal(values.float())
        assert source.read(name, dtype=torch.bfloat16).equal(values.bfloat16())
    assert [name for name in source.tensors if source.is_fp8(name)] == ["a.weight"]


def test_a_plain_checkpoint_needs_none_of_this(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", {"a.weight": torch.rand(2, 2).bfloat16()})
    source = open_tensors(path)
    assert not is_quantised(source)
    assert Dequantiser(source).read("a.weight").dtype == torch.bfloat16


Q = random_fp8(OUT, IN)
REFUSED: Mapping[str, tuple[dict[str, Tensor], dict[str, str] | None]] = {
    "nvfp4": ({"a.weight": Q.view(torch.uint8), "a.weight_scale_2": torch.ones(())}, None),
    "mxfp8": ({"a.weight": Q, "a.comfy_quant": json_bytes({"format": "mxfp8"})}, None),
    "int8_tensorwise": (
        {"a.weight": Q},
        {"_quantization_metadata": '{"layers": {"a": {"format": "int8_tensorwise"}}}'},
    ),
    "scaled int8": ({"a.weight": Q.view(torch.int8), "a.weight_scale": torch.ones(())}, None),
    "smoothed": ({"a.weight": Q, "a.pre_quant_scale": torch.ones(IN)}, None),
    "blocks of rows and columns": ({"a.weight": Q, "a.weight_scale_inv": torch.ones(1, 1)}, None),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_format_that_is_not_read_is_named(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / "m.safetensors", *REFUSED[kind])
    with pytest.raises(WeightsError, match=kind) as caught:
        opened(path)
    assert "fp8_scaled" in str(caught.value.hint)


HOSTILE: Mapping[str, tuple[dict[str, Tensor], dict[str, str] | None]] = {
    "a scale of nothing": ({"a.weight": Q, "b.weight_scale": torch.ones(())}, None),
    "a scale of another size": ({"a.weight": Q, "a.weight_scale": torch.ones(OUT + 1, 1)}, None),
    "a scale of inputs": ({"a.weight": Q, "a.weight_scale": torch.ones(1, IN)}, None),
    "blocks that do not divide": ({"a.weight": Q, "a.weight_scale": torch.ones(OUT, 3, 1)}, None),
    "no blocks": ({"a.weight": Q, "a.weight_scale": torch.ones(OUT, 0, 1)}, None),
    "a scaled vector": ({"a.weight": Q[0], "a.weight_scale": torch.ones(())}, None),
    "no JSON": ({"a.weight": Q, "a.comfy_quant": torch.full((9,), 123).byte()}, None),
    "a list": ({"a.weight": Q, "a.comfy_quant": json_bytes([1])}, None),
    "numbers": ({"a.weight": Q, "a.comfy_quant": torch.ones(4)}, None),
    "a long format": ({"a.weight": Q, "a.comfy_quant": json_bytes("x" * 9999)}, None),
    "a deep header": ({"a.weight": Q}, {"_quantization_metadata": "[" * 5000}),
    "a header of lists": ({"a.weight": Q}, {"_quantization_metadata": '{"layers": [1]}'}),
    "a header of numbers": ({"a.weight": Q}, {"_quantization_metadata": '{"layers": {"a": 1}}'}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_markers_that_make_no_sense_end_in_one_line(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / "m.safetensors", *HOSTILE[kind])
    with pytest.raises(WeightsError) as caught:
        opened(path)
    assert caught.value.hint and "\n" not in caught.value.message


def test_a_scale_that_is_not_finite_is_damage(tmp_path: Path) -> None:
    tensors = {"a.weight": Q, "a.weight_scale": torch.tensor(torch.inf)}
    source = opened(save(tmp_path / "m.safetensors", tensors))
    with pytest.raises(WeightsError, match=r"a\.weight_scale is not finite"):
        source.read("a.weight")


@pytest.mark.parametrize("fp8", FP8_DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", [1, 3])
def test_a_layer_in_8_bits_computes_what_its_dequantised_weight_does(
    dtype: torch.dtype, blocks: int, fp8: torch.dtype
) -> None:
    """Bit for bit, whatever the dtype: storage is all that differs."""
    values = random_fp8(30, 48, dtype=fp8)
    scale = torch.rand(30, blocks) / 50
    weight = values.float().reshape(30, blocks, -1) * scale[..., None]
    weight = weight.reshape(30, 48).to(dtype)
    bias, x = torch.randn(30, dtype=dtype), torch.randn(2, 5, 48, dtype=dtype)
    layer = Fp8Linear(Fp8Weight(values=values, scale=scale), bias, dtype)
    assert layer.weight.equal(weight)
    assert layer(x).equal(F.linear(x, weight, bias))


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-20, 1e20), st.integers(0, 2**31))
def test_quantising_is_as_near_as_the_format_allows(size: float, seed: int) -> None:
    """A weight moves by half a step at most: 1/16 of itself, or of 2^-6 of the row's scale."""
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(seed)) * size
    weight[2] = 0
    found = quantise(weight)
    assert found.values.dtype == E4M3 and found.scale.shape == (5, 1)
    error = (found.dequantised(torch.float32) - weight).abs()
    assert (error <= weight.abs() / 16 * 1.001 + found.scale * 2**-10 * 1.001).all()
    assert found.dequantised(torch.float32)[2].eq(0).all()
    again = quantise(found.dequantised(torch.float32))  # what is on the grid stays
    assert again.values.view(torch.uint8).equal(found.values.view(torch.uint8))


def random_dit() -> DiT:
    network = DiT(CONFIG).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.normal_(std=0.2)
    return network


def run(network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(1, 4, 3, 4, 6, generator=generator)
    context = torch.randn(1, 8, 12, generator=generator)
    return network(latents, torch.tensor([[1000.0, 300, 0]]), context)


def cast_to_fp8(network: nn.Module) -> nn.Module:
    """Quantise the blocks' linear layers of a loaded network, in place."""
    weights = {name: quantise(network.get_parameter(name)) for name in fp8_weights(network)}
    state = network.state_dict() | hold_fp8(network, weights, next(network.parameters()).dtype)
    network.load_state_dict({k: v for k, v in state.items() if k not in weights}, strict=True)
    return network.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_transformer_in_8_bits_is_the_dequantised_one(dtype: torch.dtype) -> None:
    """Only the blocks' linear layers are quantised, and nothing else in the network knows."""
    network = random_dit().to(dtype)
    cast = random_dit().to(dtype)
    cast.load_state_dict(network.state_dict())
    names = fp8_weights(network)
    assert len(names) == CONFIG.num_layers * 10
    assert all("norm" not in name and name.startswith("blocks.") for name in names)
    state = network.state_dict()
    for name in names:
        state[name].copy_(quantise(state[name]).dequantised(dtype))
    before = sum(p.nbytes for p in cast.parameters())
    cast_to_fp8(cast)
    assert run(cast).equal(run(network))
    saved = sum(state[name].nbytes - state[name].numel() for name in names)
    scales = sum(4 * state[name].shape[0] for name in names)
    assert sum(p.nbytes for p in cast.parameters()) == before - saved + scales
    assert all(not p.requires_grad for p in cast.parameters())


def test_a_network_on_the_meta_device_takes_8_bit_weights(tmp_path: Path) -> None:
    """As loading does it: strict, assigned, nothing left on meta."""
    network = random_dit()
    stored = {name: quantise(network.state_dict()[name]) for name in fp8_weights(network)[3:]}
    state = {name: t for name, t in network.state_dict().items() if name not in stored}
    with torch.device("meta"):
        held = DiT(CONFIG)
    state |= hold_fp8(held, stored, torch.float32)
    held.load_state_dict(state, strict=True, assign=True)
    held.requires_grad_(False).eval()
    assert not any(p.is_meta for p in held.parameters())
    for name, weight in stored.items():
        network.get_parameter(name).copy_(weight.dequantised(torch.float32))
    assert run(held).equal(run(network))
    held.to("meta")  # how a network is freed


def test_a_text_encoder_in_8_bits_is_the_dequantised_one() -> None:
    config = TextEncoderConfig(
        vocab_size=20, hidden_size=16, num_layers=2, num_heads=2, head_dim=4, ffn_dim=24
    )
    network = TextEncoder(config).eval().requires_grad_(False)
    network.init_weights()
    cast = TextEncoder(config).eval().requires_grad_(False)
    cast.load_state_dict(network.state_dict())
    for name in fp8_weights(network):
        weight = network.get_parameter(name)
        weight.copy_(quantise(weight).dequantised(torch.float32))
    ids, mask = torch.randint(20, (1, 6)), torch.ones(1, 6)
    assert cast_to_fp8(cast)(ids, mask).equal(network(ids, mask))
    assert len(fp8_weights(network)) == 14


def test_the_error_of_casting_is_what_the_documentation_says() -> None:
    """Of normal weights: 2.6 % of their size, as a root mean square."""
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    error = quantise(weight).dequantised(torch.float32) - weight
    assert 0.024 < float(error.norm() / weight.norm()) < 0.028
