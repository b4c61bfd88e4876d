"""From a checkpoint to a network: built on the meta device, compared, filled tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sora_cli.errors import WeightsError
from sora_cli.models.fp8 import Fp8Weight, fp8_weights, hold_fp8, quantise
from sora_cli.weights.lora import LoraReport, Merger
from sora_cli.weights.lora_arguments import Lora
from sora_cli.weights.quantize import Dequantiser
from sora_cli.weights.tensors import Device, TensorSource

N = TypeVar("N", bound=nn.Module)
Storage = Literal["dtype", "fp8"]


class _Unset(TorchFunctionMode):
    """Leaves parameters as they were allocated: their values come from a file.

    More than saved work: drawing normal numbers on the meta device imports torch's compiler, which
    takes a second.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.normal_ or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build_on_meta(build: Callable[[], N], part: Path) -> N:
    """A network without values.

    Args:
        build: makes it.
        part: where its numbers come from, for messages.

    Raises:
        WeightsError: the numbers make no network.
    """
    try:
        with torch.device("meta"), _Unset():
            return build()
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError, RuntimeError,
            AssertionError) as error:  # fmt: skip
        # The builders' own complaints about numbers that make no network are among these.
        reason = str(error.args[0] if error.args else error).splitlines()[0][:300]
        raise WeightsError(
            f"the weights in {part} make no network: {reason}", hint="download it again"
        ) from error


def compare(network: nn.Module, found: Mapping[str, tuple[int, ...]], part: Path) -> None:
    """Check that a checkpoint has just the parameters of a network, by name and shape.

    Raises:
        WeightsError: the first that is missing, one too many or of another shape.
    """
    wanted = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    for name in (*wanted, *found):
        if name not in found:
            reason = f"{name} is missing"
        elif name not in wanted:
            reason = f"{name} is one too many"
        elif found[name] != wanted[name]:
            sizes = ("×".join(map(str, shape)) for shape in (found[name], wanted[name]))
            reason = "{} is {}, by the rest it would be {}".format(name, *sizes)
        else:
            continue
        raise WeightsError(
            f"the weights in {part} do not fit together: {reason}", hint="download it again"
        )


def fill(
    network: nn.Module,
    source: TensorSource,
    names: Mapping[str, str],
    *,
    device_of: Callable[[str], Device],
    dtype: torch.dtype,
    loras: Sequence[Lora] = (),
    storage: Storage = "dtype",
) -> LoraReport | None:
    """Give a network on the meta device its values, read one after another.

    Args:
        network: of the checkpoint's shapes (`compare`).
        source: the checkpoint.
        names: the checkpoint's names → the network's.
        device_of: where a parameter is put, by its name in the network.
        dtype: of all parameters, whatever the checkpoint's.
        loras: merged into the parameters they change, in float32, before these are rounded.
        storage: "fp8" keeps the linear weights of the blocks in 8 bits: as they are in the
            checkpoint, or else (and where a LoRA changes them) cast.

    Returns:
        What the LoRAs changed, None without any.

    Raises:
        WeightsError: a damaged file; a LoRA that does not fit (`lora.Merger`).
    """
    theirs = {ours: name for name, ours in names.items()}
    in_8_bits = set(fp8_weights(network)) if storage == "fp8" else set()
    state: dict[str, Tensor] = {}
    held: dict[str, Fp8Weight] = {}
    with ExitStack() as stack:
        shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
        merger = stack.enter_context(Merger(shapes, loras)) if loras else None
        changed = set(merger.names) if merger else set()
        for name in shapes:
            foreign, device = theirs[name], device_of(name)
            if name in in_8_bits - changed and _is_fp8(source, foreign):
                assert isinstance(source, Dequantiser)
                held[name] = source.read_fp8(foreign, device=device)
                continue
            exact = name in changed or name in in_8_bits
            weight = source.read(foreign, device=device, dtype=torch.float32 if exact else dtype)
            if merger and name in changed:
                weight = merger.apply(name, weight)
            if name in in_8_bits:
                held[name] = quantise(weight)
            else:
                state[name] = weight.to(dtype)
        report = merger.report() if merger else None
    state |= hold_fp8(network, held, dtype)
    network.load_state_dict(state, strict=True, assign=True)
    return report


def _is_fp8(source: TensorSource, name: str) -> bool:
    return isinstance(source, Dequantiser) and source.is_fp8(name)


def check_filled(network: nn.Module) -> None:
    """Assert that nothing was left on the meta device, as a strict load alone does not see."""
    left = [n for n, t in (*network.named_parameters(), *network.named_buffers()) if t.is_meta]
    assert not left, f"never loaded: {left}"
