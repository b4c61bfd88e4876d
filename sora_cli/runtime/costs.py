"""What the transformer and the text encoder cost: bytes alive at most, FLOPs, and rates.

Activations follow `sora_cli/models/dit.py` line by line: for each phase of a block, what lives at
its busiest moment. R is the fp32 residual stream [B, L, D], H the same in the compute dtype, F the
hidden layer of the feed-forward. FLOPs: `FlopCounterMode` gives the same for the published models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sora_cli.runtime import costs_vae
from sora_cli.runtime.shapes import (
    DeviceKind,
    JobShape,
    NetworkShapes,
    Storage,
    TextEncoderShape,
    TransformerShape,
)

MIB = 1 << 20


def block_bytes(shape: TransformerShape, rows: int, item: int, *, kernels: bool = False) -> int:
    """The most that lives while a block runs on `rows` = B·L tokens, its weights not among it.

    kernels: those of `models/kernels.py` run: they keep nothing in fp32 but the stream, and that
        once.
    """
    residual, hidden = rows * shape.hidden_size * 4, rows * shape.hidden_size * item
    inner = rows * shape.ffn_dim * item
    # VACE's branch keeps the control's own stream and the patches' beside its block.
    branch = 2 * residual if shape.vace_layers else 0
    if kernels:
        # Of self-attention the norm, query, key and value, and what it gives; of cross-attention
        # one fewer, and the update of before. At the feed-forward the last update lives still.
        return residual + max(5 * hidden, 3 * hidden + inner) + branch
    # The stream, its norm, both projections, the finished query; the key as it is turned, and then.
    keys = 2 * residual + 5 * hidden
    # Query, key and value beside what they are of, what attention gives, and its projection.
    attention = residual + 6 * hidden
    # The caller still has the stream from before the block; the sum lives as `update`.
    cross = 2 * residual + max(residual + 3 * hidden, 5 * hidden)
    # The stream before and after a sum, its norm in fp32 and, before it, in the compute dtype.
    sums = 4 * residual + 3 * hidden
    # Its GELU is in place, or one with the matmul before it.
    feed_forward = 2 * residual + 3 * hidden + inner
    return max(keys, attention, cross, sums, feed_forward) + branch


def context_bytes(shape: TransformerShape, job: JobShape) -> int:
    """Every block's cross-attention keys and values of the texts (and the picture)."""
    rows = max(job.contexts, job.batch) * (shape.text_len + shape.image_tokens)
    blocks = shape.num_layers + shape.vace_layers
    return 2 * blocks * rows * shape.hidden_size * job.item_bytes


def denoise_bytes(shapes: NetworkShapes, job: JobShape, *, storage: Storage = "dtype") -> int:
    """The most that lives while denoising, the transformer's weights not among it."""
    shape = shapes.transformer
    tokens = job.tokens(shapes)
    time, tall, wide = job.latent_size(shapes.autoencoder)
    grid = time * tall * wide * shape.out_channels * 4 * job.batch
    # Noise, the canvas's own, three predictions, two states, two velocities, one in the making.
    latents = 10 * grid
    rope = tokens * shape.hidden_size // shape.num_heads * 4
    # An 8-bit weight is widened whenever it is used.
    widened = shape.hidden_size * shape.ffn_dim * job.item_bytes if storage == "fp8" else 0
    kernels = job.kernels and job.device_kind == "cuda"
    block = block_bytes(shape, job.batch * tokens, job.item_bytes, kernels=kernels)
    return block + context_bytes(shape, job) + latents + rope + widened


def transformer_bytes(shape: TransformerShape, item: int, storage: Storage = "dtype") -> int:
    """Weights of one expert."""
    blocks = shape.num_layers * block_weight_bytes(shape, item, storage)
    vace = shape.vace_parameters
    outside = shape.parameters - shape.num_layers * shape.block_parameters - vace
    return blocks + vace * (1 if storage == "fp8" else item) + outside * item


def block_weight_bytes(shape: TransformerShape, item: int, storage: Storage = "dtype") -> int:
    """Weights of one block."""
    return shape.block_parameters * (1 if storage == "fp8" else item)


def text_encoder_bytes(shape: TextEncoderShape, item: int, text_len: int) -> tuple[int, int]:
    """Weights, and the most that lives beside them while one text of `text_len` tokens runs."""
    scores = shape.num_heads * text_len * text_len
    inner = shape.num_heads * shape.head_dim
    # The bias as it is looked up, cast and masked; or the feed-forward's three hidden layers.
    attention = 3 * scores * item + text_len * (4 * inner * item + 2 * shape.hidden_size * 4)
    feed_forward = text_len * (3 * shape.ffn_dim * item + 3 * shape.hidden_size * 4)
    return shape.parameters * item, max(attention, feed_forward)


def forward_flops(shapes: NetworkShapes, job: JobShape) -> int:
    """One call of the transformer on one row.

    L·[8Nd² + 4N²d (self) + 4Nd² + 4Md² + 4MNd (cross, M context rows) + 4Ndf (feed-forward)].
    """
    shape, tokens = shapes.transformer, job.tokens(shapes)
    width, context = shape.hidden_size, shape.text_len + shape.image_tokens
    block = 12 * tokens * width**2 + 4 * tokens**2 * width
    block += 4 * context * width**2 + 4 * context * tokens * width
    block += 4 * tokens * width * shape.ffn_dim
    return (shape.num_layers + shape.vace_layers) * block


def text_flops(shape: TextEncoderShape, text_len: int) -> int:
    """One text through the encoder: two for each weight outside the embedding."""
    return 2 * text_len * (shape.parameters - shape.vocab_size * shape.hidden_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """FLOPs of a job's phases."""

    encode_text: int
    encode_given: int
    denoise: int
    decode: int


def work(shapes: NetworkShapes, job: JobShape, *, tile_ratio: float = 1.0) -> Work:
    """The FLOPs of a whole job; `tile_ratio` is how many times over a tiled decoder works."""
    latent_frames, _, _ = job.latent_size(shapes.autoencoder)
    vae, size = shapes.autoencoder, (job.height, job.width)
    given = costs_vae.encoding(vae, job.given_frames, *size).flops if job.given_frames else 0
    decode = costs_vae.decoding(vae, latent_frames, *size).flops * tile_ratio
    rows = job.steps * max(job.contexts, job.batch)
    return Work(
        encode_text=job.contexts * text_flops(shapes.text_encoder, shapes.transformer.text_len),
        encode_given=given,
        denoise=rows * forward_flops(shapes, job),
        decode=int(decode),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """TFLOP/s that a device keeps up on a transformer, and where the number comes from.

    autoencoder_tflops: on the convolutions of an autoencoder.
    """

    tflops: float
    autoencoder_tflops: float
    source: str


def _gpu(tflops: float, source: str) -> Rate:
    # A fifth on the autoencoder: SGLang decodes Wan2.1 480p, 275 TFLOP, in 1.88 s on the GPU on
    # which its transformer runs at 653.
    return Rate(tflops=tflops, autoencoder_tflops=tflops / 5, source=source)


# Whole steps in bfloat16, by the published code with its eager attention.
RATES: tuple[tuple[str, Rate], ...] = (
    ("H200", _gpu(367, "Wan2.1 I2V 14B 480p, 40 steps in 366 s (LightX2V's table)")),
    ("H100", _gpu(355, "Wan2.1 14B 720p, 50 steps in 1838 s (Wan2.1's chart)")),
    ("A100", _gpu(195, "Wan2.1 14B 720p, 50 steps in 3343 s (Wan2.1's chart)")),
    ("5090", _gpu(154, "Wan2.1 1.3B 480p, 50 steps in 184 s (TurboDiffusion's baseline)")),
    ("4090", _gpu(97, "Wan2.2 5B 704p, 50 steps in 535 s (Wan2.2's chart)")),
)
# GFLOP/s of one core on 2048² matrices (Zen 4, AVX-512 bfloat16), less a fifth for what is none.
_CORE_GFLOPS = {"float32": 75.0, "bfloat16": 150.0, "float16": 40.0}


def cpu_rate(cores: int, dtype: str) -> Rate:
    """What a CPU of so many cores does; its convolutions are as fast as its matrices."""
    tflops = cores * _CORE_GFLOPS[dtype] / 1000
    return Rate(tflops=tflops, autoencoder_tflops=tflops, source="75 GFLOP/s a core in fp32")


# Orders the plans of a device whose rate is not known.
NOMINAL = _gpu(100, "nominal")


def rate(job: JobShape) -> Rate | None:
    """The job's measured rate, else its device's typical one, else None."""
    if job.device_kind == "cpu":
        known = cpu_rate(job.cores, job.dtype)
        if job.tflops is None:
            return known
        return replace(known, tflops=job.tflops, source="measured here")
    if job.tflops is not None:
        return _gpu(job.tflops, "measured here")
    return next((known for name, known in RATES if name in job.device_name), None)


# GB/s from host memory to a device: PCIe 4.0 x16 as pinned copies reach it; an H100's is double.
TRANSFER_GBPS = 22.0
# GB/s of reading weights that are not in memory any more, from an NVMe disk.
RELOAD_GBPS = 2.0


def overhead_bytes(kind: DeviceKind) -> int:
    """What the libraries take on the device beside the tensors.

    CUDA: cuBLAS's workspace of 32 MiB a handle (torch's default on sm90, 8 MiB before). The
    context itself is taken before free memory is asked for. CPU: kernels' scratch, small.
    """
    return 64 * MIB if kind == "cuda" else 16 * MIB
