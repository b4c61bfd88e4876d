"""What the networks do for speed on a CPU in inference, against the plain form that trains.

Each way must give what the plain one gives, to the rounding of its dtype, and leave the state dict
alone: LoRAs, 8-bit storage and placement find the parameters by the original names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sora_cli.models import layers, vae_layers
from sora_cli.models.dit import DiT, DiTConfig
from sora_cli.models.fp8 import Fp8Linear, quantise
from sora_cli.models.layers import (
    FeedForward,
    LayerNorm,
    RMSNorm,
    SelfAttention,
    has_onednn,
    modulate,
    rope_table,
)
from sora_cli.models.vae import VAE, VAEConfig
from sora_cli.weights import load, store

DTYPES = (torch.float32, torch.bfloat16)
# Rounding of a sum of a few hundred products of size 1, a few times over.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
DIT = DiTConfig(
    num_layers=2, hidden_size=48, num_heads=2, ffn_dim=80, in_channels=4, out_channels=4,
    text_dim=12, text_len=8, freq_dim=16,
)  # fmt: skip
VAES = {
    residual: VAEConfig(
        z_dim=4, encoder_dim=8, decoder_dim=8, dim_mult=(1, 2, 2), residual=residual,
        patch_size=2 if residual else 1, temporal_downsample=(True, True),
        latents_mean=(0.1,) * 4, latents_std=(1.5,) * 4,
    )
    for residual in (False, True)
}  # fmt: skip


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(network: nn.Module) -> nn.Module:
    for seed, parameter in enumerate(network.parameters()):
        values = random(*parameter.shape, seed=seed)
        parameter.data = values / max(1, parameter[0].numel()) ** 0.5
    return network.eval().requires_grad_(False)


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    return float((one.float() - other.float()).abs().max() / other.float().abs().max())


def both_ways(call: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """In inference, and with gradients enabled: the way that trains."""
    with torch.no_grad():
        fast = call()
    with torch.enable_grad():
        return fast, call()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_feed_forward_is_the_same_in_inference(dtype: torch.dtype) -> None:
    network = filled(FeedForward(96, 160)).to(dtype)
    x = 2 * random(2, 30, 96).to(dtype)
    fast, plain = both_ways(lambda: network(x))
    assert fast.dtype == dtype and apart(fast, plain) < ROUNDING[dtype]
    assert set(network.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}


@torch.no_grad()
def test_in_half_precision_the_form_of_the_gelu_is_below_the_rounding() -> None:
    """Both forms from the same bfloat16 weights are as far from the exact layer, to 1 %."""
    network = filled(FeedForward(256, 1024))
    network[2].bias.data.zero_()
    for scale in (0.3, 1.0, 3.0):  # of what the GELU reads
        half, x = network.to(torch.bfloat16), (scale * random(2000, 256)).bfloat16()
        exact = copy.deepcopy(half).float()(x.float())
        widened = F.linear(x.float(), half[0].weight.float(), half[0].bias.float())
        tanh = half[2](F.gelu(widened, approximate="tanh").bfloat16())
        wrong = [(form.float() - exact).square().mean() for form in (half(x), tanh)]
        assert wrong[0] <= 1.02 * wrong[1] and wrong[1] > 0


def test_the_gelu_that_is_compiled_for_training_is_the_tanh_form() -> None:
    """Values and slopes; torch's own in fp32 loses what tanh cancels, so it is asked in fp64."""
    x = torch.linspace(-30, 30, 20_001).requires_grad_()
    found, wanted = layers.tanh_gelu(x), F.gelu(x.double(), approximate="tanh")
    torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=1e-9)
    slopes = [torch.autograd.grad(values.sum(), x)[0] for values in (found, wanted)]
    torch.testing.assert_close(*slopes, rtol=2e-5, atol=1e-6)
    assert layers.tanh_gelu(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_where_onednn_is_not_the_gelu_is_in_place_and_exact(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, or a CPU that is no x86: torch's own operations, bit for bit."""
    monkeypatch.setattr(layers, "has_onednn", lambda: False)
    network = filled(FeedForward(96, 160)).to(dtype)
    x = random(2, 30, 96).to(dtype)
    assert torch.equal(*both_ways(lambda: network(x)))


@torch.no_grad()
def test_a_feed_forward_in_8_bits_takes_the_same_way() -> None:
    """What is stored in 8 bits computes as its widened weight does, bit for bit."""
    network, x = filled(FeedForward(96, 160)), random(2, 30, 96)
    held = Fp8Linear(quantise(network[0].weight), network[0].bias, torch.float32)
    network[0].weight.data = held.weight
    wanted = network(x)
    network[0] = held
    assert torch.equal(network(x), wanted)


def test_onednn_is_asked_where_this_machine_has_it() -> None:
    """Otherwise the tests above compare a thing with itself and nobody notices."""
    x86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    assert has_onednn() == (x86 and torch.backends.mkldnn.is_available())


@pytest.mark.parametrize("groups", [1, 5])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_norm_modulated_in_one_pass(groups: int, batch: int) -> None:
    """One row for all tokens becomes the norm's own weight and bias; others are not mixed up."""
    norm, x = LayerNorm(32), 3 * random(3, 10, 32) + 1
    shift, scale = random(batch, groups, 32, seed=1), random(batch, groups, 32, seed=2)
    wanted = modulate(F.layer_norm(x, (32,), eps=1e-6), shift, scale)
    for found in both_ways(lambda: norm(x, shift, scale)):
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_in_place_leave_their_input_alone(dtype: torch.dtype) -> None:
    norm = filled(RMSNorm(40))
    x = random(2, 6, 40).to(dtype)
    kept = x.clone()
    assert torch.equal(*both_ways(lambda: norm(x)))
    assert torch.equal(x, kept)
    picture = vae_layers.NormSiLU(6)
    x = random(1, 6, 2, 4, 4).to(dtype)
    kept = x.clone()
    assert torch.equal(*both_ways(lambda: picture.to(dtype)(x)))
    assert torch.equal(x, kept)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("qk_norm", [True, False], ids=["normed", "not normed"])
def test_rotation_in_place_is_the_same_and_leaves_its_input_alone(
    qk_norm: bool, dtype: torch.dtype
) -> None:
    attention = filled(SelfAttention(48, 2, qk_norm=qk_norm, eps=1e-6)).to(dtype)
    x, rope = random(2, 6, 48).to(dtype), rope_table((1, 2, 3), 24, torch.device("cpu"))
    kept = x.clone()
    norms = (attention.norm_q,)
    assert torch.equal(*both_ways(lambda: attention.normed_heads(norms, (x,), rope)[0]))
    assert torch.equal(x, kept)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_step_in_inference_is_the_step_that_trains(dtype: torch.dtype) -> None:
    """Rows of a batch that share their timesteps, all or one by frame, and rows that do not."""
    network = filled(DiT(DIT)).to(dtype)
    latents, context = random(2, 4, 3, 4, 6), random(2, 8, 12, seed=1)
    shared, given = torch.tensor([600.0, 600.0]), torch.tensor([[0.0, 600.0, 600.0]] * 2)
    for timesteps in (shared, given, torch.tensor([600.0, 20.0])):
        fast, plain = both_ways(lambda t=timesteps: network(latents, t, context))
        assert fast.shape == plain.shape and apart(fast, plain) < 4 * ROUNDING[dtype]
    with torch.no_grad():
        other = network(latents, torch.tensor([600.0, 20.0]), context)
        alike = network(latents, shared, context)
    assert apart(other[:1], alike[:1]) < 4 * ROUNDING[dtype] < apart(other[1:], alike[1:])


@pytest.mark.parametrize("residual", VAES)
def test_a_clip_decodes_alike_whatever_computes_it(residual: bool) -> None:
    """Chunks through oneDNN with channels last, against one pass of the way that trains."""
    network = filled(VAE(VAES[residual]))
    latents = random(1, 4, 3, 4, 6)
    with torch.enable_grad():
        wanted = network.decode_raw(network.denormalize(latents)).clamp(-1, 1)
        clip = torch.rand(1, 3, 9, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
        code = network.normalize(network.posterior(clip)[0])
    names = list(network.state_dict())
    for _ in range(2):
        chunks = list(network.decode_stream(latents))
        assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4]
        torch.testing.assert_close(torch.cat(chunks, 2), wanted, rtol=0, atol=2e-5)
        torch.testing.assert_close(network.encode(clip), code, rtol=0, atol=2e-5)
        network.to_channels_last()
    assert list(network.state_dict()) == names


def test_interleaved_frames_keep_their_layout() -> None:
    pairs = random(1, 6, 2, 3, 4)
    wanted = torch.stack(pairs.chunk(2, dim=1), dim=3).flatten(2, 3)  # [B, C, T, 2, H, W] → 2T
    plain = vae_layers._interleave(pairs)
    last = vae_layers._interleave(pairs.contiguous(memory_format=torch.channels_last_3d))
    assert torch.equal(plain, wanted) and torch.equal(last, wanted)
    assert last.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_loaded_autoencoder_has_its_channels_last() -> None:
    with load.vae(store.locate("tiny").folder, device="cpu", dtype=torch.bfloat16) as vae:
        weights = [m.weight for m in vae.modules() if isinstance(m, vae_layers.CausalConv3d)]
        assert weights
        for weight in weights:
            assert weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_half_precision_shows_as_little_as_a_good_codec() -> None:
    """The embedded model in bfloat16 against float32, guided, from the same noise.

    At 16 steps the clips of four prompts differ by 47 to 64 dB of PSNR
    (docs/log.md); here, with 3 steps of a smaller clip, by more than 40. The decoder alone:
    more than 45.
    """
    folder = store.locate("tiny").folder
    noise, context = random(1, 48, 3, 4, 6), random(2, 64, 192, seed=1)
    made = {}
    for dtype in DTYPES:
        latents = noise
        with torch.no_grad(), load.dit(folder, device="cpu", dtype=dtype) as dit:
            cache = dit.prepare_context(context)
            for sigma, after in pairwise((1.0, 0.75, 0.5, 0.0)):
                timesteps = torch.tensor([1000 * sigma] * 2)
                one, other = dit(torch.cat([latents, latents]), timesteps, cache).split(1)
                latents = latents + (after - sigma) * (other + 4 * (one - other))
        made[dtype] = latents
    clips = {}
    for dtype in DTYPES:
        with load.vae(folder, device="cpu", dtype=dtype) as vae:
            for name, latents in made.items():
                clips[dtype, name] = vae.decode(latents.to(dtype)).float()
    exact = clips[torch.float32, torch.float32]

    def psnr(other: Tensor) -> float:
        return float(-10 * torch.log10((exact - other).square().mean() / 4))

    assert psnr(clips[torch.float32, torch.bfloat16]) > 40
    assert psnr(clips[torch.bfloat16, torch.float32]) > 45
    assert psnr(clips[torch.bfloat16, torch.bfloat16]) > 40
