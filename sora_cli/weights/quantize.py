"""Checkpoints whose weights are 8-bit floats with scales, read as plain tensors or kept so.

Two conventions are in circulation for a linear layer X. The older one marks the file with a tensor
`scaled_fp8` and names the scale `X.scale_weight` (and `X.scale_input`); the newer names it
`X.weight_scale` (and `X.input_scale`) and says the format in `X.comfy_quant` or in the header's
`_quantization_metadata`. In both, W = q · scale, the scale being one number, `[O]` or `[O, 1]`, or
`[O, G, 1]` for G blocks of inputs. Input scales concern 8-bit matmuls and are not used. Files
without scales, whose weights were merely cast, read the same with a scale of 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sora_cli.errors import WeightsError
from sora_cli.models.fp8 import FP8_DTYPES, Fp8Weight
from sora_cli.weights.tensors import PREFIXES, Device, TensorInfo, TensorSource

FORMATS: Mapping[str, torch.dtype] = {
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
SCALES = (".scale_weight", ".weight_scale")
# Beside a weight but no weight: scales of activations, what a format is called, a tokenizer that
# Comfy packs into its text encoders.
IGNORED = (".scale_input", ".input_scale", ".comfy_quant")
IGNORED_NAMES = ("scaled_fp8", "spiece_model")
# A second scale means a format that is not q · scale.
FOREIGN: Mapping[str, str] = {
    ".weight_scale_2": "nvfp4",
    ".pre_quant_scale": "weights smoothed for 8-bit activations",
    ".weight_scale_inv": "8-bit floats in blocks of rows and columns",
}
_TAKE_ANOTHER = "take the fp8_scaled, bf16 or fp16 variant of the same model"
_LONGEST_FORMAT = 4096  # bytes of a `comfy_quant`


class Dequantiser:
    """A checkpoint in which weights that are stored in 8 bits read as plain ones.

    A `TensorSource` itself: `tensors` leaves out scales and markers, and keeps the stored dtypes.
    It stands between the file and any renaming, because a header names layers as the file does.
    """

    def __init__(self, source: TensorSource) -> None:
        """Wrap `source`; of values only the names of formats are read.

        Raises:
            WeightsError: a format that is not q · scale, named; or scales that do not fit.
        """
        self._source = source
        self.part: Path = source.part
        self.metadata: Mapping[str, str] = source.metadata
        self._scales: dict[str, str] = {}  # weight → its scale
        for name in source.tensors:
            foreign = next((kind for end, kind in FOREIGN.items() if name.endswith(end)), None)
            if foreign is not None:
                raise _refused(self.part, foreign, name)
            for ending in SCALES:
                if name.endswith(ending):
                    self._scales[f"{name.removesuffix(ending)}.weight"] = name
        self.tensors: Mapping[str, TensorInfo] = {
            name: info
            for name, info in source.tensors.items()
            if name not in IGNORED_NAMES and not name.endswith((*SCALES, *IGNORED))
        }
        self._formats = {**_formats_in_header(source), **_formats_in_tensors(source)}
        for name in {**self._formats, **self._scales}:
            self._check(name)

    def is_fp8(self, name: str) -> bool:
        """Whether a tensor is a matrix stored in 8 bits, so that `read_fp8` gives it as it is."""
        info = self.tensors[name]
        return len(info.shape) == 2 and (info.dtype in FP8_DTYPES or name in self._formats)

    def read(
        self, name: str, *, device: Device = "cpu", dtype: torch.dtype | None = None
    ) -> Tensor:
        """A tensor with its scale multiplied in, in float32 and rounded once.

        Args:
            name: one of `tensors`.
            device: where the values are put, before they are multiplied.
            dtype: None means as stored, and float32 where that is 8 bits.
        """
        if self.is_fp8(name):
            return self.read_fp8(name, device=device).dequantised(dtype or torch.float32)
        if dtype is None and self.tensors[name].dtype in FP8_DTYPES:
            dtype = torch.float32
        return self._source.read(name, device=device, dtype=dtype)

    def read_fp8(self, name: str, *, device: Device = "cpu") -> Fp8Weight:
        """A matrix as it is stored, with its scale brought to the form of `Fp8Weight`."""
        values = self._source.read(name, device=device)
        if values.dtype == torch.uint8:  # the bits, in a container of plain bytes
            values = values.view(self._formats[name])
        scale_name = self._scales.get(name)
        if scale_name is None:
            return Fp8Weight(values=values, scale=torch.ones(1, 1, device=values.device))
        scale = self._source.read(scale_name, device=device, dtype=torch.float32)
        if not torch.isfinite(scale).all():
            raise WeightsError(
                f"{self.part} is damaged: {scale_name} is not finite", hint="download it again"
            )
        blocks = scale.shape[1] if scale.ndim == 3 else 1
        return Fp8Weight(values=values, scale=scale.reshape(-1, blocks))

    def close(self) -> None:
        """Let go of the files."""
        self._source.close()

    def _check(self, name: str) -> None:
        """A weight with a format or a scale is there, in 8-bit floats, and its scale fits."""
        info, scale_name = self.tensors.get(name), self._scales.get(name)
        if info is None:
            if scale_name is None:  # a header may name layers that the file lacks
                return
            raise WeightsError(
                f"{self.part} is damaged: {scale_name} belongs to no weight",
                hint="download the file again",
            )
        in_bytes = name in self._formats and info.dtype == torch.uint8
        if info.dtype not in FP8_DTYPES and not in_bytes:
            raise _refused(self.part, f"scaled {str(info.dtype).removeprefix('torch.')}", name)
        if scale_name is None:
            return
        scale = self._source.tensors[scale_name].shape
        out, inputs = info.shape if len(info.shape) == 2 else (0, 0)
        fits = math.prod(scale) == 1 or scale in ((out,), (out, 1))
        if len(scale) == 3:
            fits = fits or scale[::2] == (out, 1) and inputs % max(scale[1], 1) == 0
        if not (out and inputs and math.prod(scale) and fits):
            found, wanted = ("×".join(map(str, shape)) for shape in (scale, info.shape))
            raise WeightsError(
                f"{self.part}: {scale_name} of size {found} does not scale a weight of {wanted}",
                hint=_TAKE_ANOTHER,
            )


def is_quantised(source: TensorSource) -> bool:
    """Whether a checkpoint has weights in 8 bits, so that it needs a `Dequantiser`."""
    return any(
        info.dtype in FP8_DTYPES or name.endswith((*SCALES, *IGNORED, *FOREIGN))
        for name, info in source.tensors.items()
    )


def _formats_in_header(source: TensorSource) -> dict[str, torch.dtype]:
    """Weight → dtype, from `_quantization_metadata`."""
    text = source.metadata.get("_quantization_metadata")
    if text is None:
        return {}
    try:
        layers = json.loads(text)["layers"]
        said = {f"{_bare(layer)}.weight": str(of["format"]) for layer, of in layers.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(source, "_quantization_metadata") from error
    return {weight: _dtype(source, weight, name) for weight, name in said.items()}


def _formats_in_tensors(source: TensorSource) -> dict[str, torch.dtype]:
    """Weight → dtype, from the tensors `X.comfy_quant`, whose bytes are JSON."""
    formats = {}
    for name, info in source.tensors.items():
        if not name.endswith(".comfy_quant"):
            continue
        try:
            if info.dtype != torch.uint8 or info.nbytes > _LONGEST_FORMAT:
                raise ValueError(f"{info.nbytes} bytes")
            said: Any = json.loads(bytes(source.read(name).flatten().tolist()))
            format_name = str(said["format"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _unreadable(source, name) from error
        weight = f"{name.removesuffix('.comfy_quant')}.weight"
        formats[weight] = _dtype(source, weight, format_name)
    return formats


def _dtype(source: TensorSource, weight: str, format_name: str) -> torch.dtype:
    if format_name not in FORMATS:
        raise _refused(source.part, format_name, weight)
    return FORMATS[format_name]


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def _unreadable(source: TensorSource, what: str) -> WeightsError:
    return WeightsError(
        f"{source.part} is damaged: {what} cannot be read", hint="download the file again"
    )


def _refused(part: Path, kind: str, name: str) -> WeightsError:
    return WeightsError(
        f"{part} holds {kind[:80]} ({name}), which this version does not read", hint=_TAKE_ANOTHER
    )
