"""Device, memory, folders: one decision each, with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sora_cli.errors import DeviceError, UsageError, WeightsError
from sora_cli.runtime import memory, paths
from sora_cli.runtime.device import choose_device, device_memory
from sora_cli.weights import manifest


def without_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("amx", "avx512", "dtype"),
    [(True, True, "bfloat16"), (False, True, "bfloat16"), (False, False, "float32")],
)
def test_a_cpu_takes_bfloat16_where_it_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, dtype: str
) -> None:
    """Elsewhere half precision is emulated, and slower; `--dtype` has the last word."""
    without_devices(monkeypatch)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    plan = choose_device()
    assert (plan.device_name, plan.dtype_name) == ("cpu", dtype)
    assert "no CUDA or Metal device" in plan.reason and f"; {dtype}, " in plan.reason
    assert device_memory(plan.device) is None
    for asked in ("float32", "bfloat16"):
        assert choose_device("cpu", asked).dtype_name == asked


def test_a_torch_that_cannot_say_what_the_cpu_has_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both names are private to torch: without them, or without oneDNN, nothing breaks."""
    without_devices(monkeypatch)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert choose_device().dtype_name == "float32"
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert choose_device("cpu").dtype_name == "float32"


def test_cuda_is_bfloat16_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for able, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able, **_: able)
        plan = choose_device()
        assert (plan.device_name, plan.dtype) == ("cuda:0", dtype)
        assert plan.dtype_name in plan.reason
    assert choose_device("cuda:1", "fp32").dtype is torch.float32
    with pytest.raises(DeviceError, match="cuda:2 is not here") as caught:
        choose_device("cuda:2")
    assert caught.value.hint == "--device cuda:1"


def test_metal_takes_bfloat16_from_macos_14_on(monkeypatch: pytest.MonkeyPatch) -> None:
    without_devices(monkeypatch)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for new, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_, new=new: new)
        plan = choose_device()
        assert (plan.device_name, plan.dtype) == ("mps", dtype)
        assert "macOS 14" in plan.reason


def test_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    without_devices(monkeypatch)
    for name in ("cuda", "cuda:3", "mps"):
        with pytest.raises(DeviceError):
            choose_device(name)
    for name in ("tpu", "cpu:1", "cuda:x", "cuda:-1", ""):
        with pytest.raises(UsageError, match="unknown device"):
            choose_device(name)
    with pytest.raises(UsageError, match="unknown dtype 'int8'"):
        choose_device("cpu", "int8")


def test_memory_readings_are_plausible() -> None:
    total, available, peak = memory.total_memory(), memory.available_memory(), memory.peak_memory()
    assert total is None or total > 2**27
    assert available is None or (total is not None and 0 <= available <= total)
    assert peak is None or 2**24 < peak < 2**45  # a Python with torch in it, in bytes


def test_folders_of_each_platform() -> None:
    home = {"HOME": "/h"}
    assert paths.config_dir(platform="linux", environ=home) == Path("/h/.config/sora")
    assert paths.state_dir(platform="linux", environ=home) == Path("/h/.local/state/sora")
    xdg = {**home, "XDG_CACHE_HOME": "/x", "XDG_CONFIG_HOME": "not/absolute"}
    assert paths.cache_dir(platform="linux", environ=xdg) == Path("/x/sora")
    assert paths.config_dir(platform="linux", environ=xdg) == Path("/h/.config/sora")
    support = Path("/h/Library/Application Support/sora")
    assert paths.config_dir(platform="darwin", environ=home) == support
    assert paths.cache_dir(platform="darwin", environ=home) == Path("/h/Library/Caches/sora")
    windows = {"APPDATA": "/r", "LOCALAPPDATA": "/l"}
    assert paths.config_dir(platform="win32", environ=windows) == Path("/r/sora")
    assert paths.cache_dir(platform="win32", environ=windows) == Path("/l/sora/cache")
    assert paths.state_dir(platform="win32", environ=windows) == Path("/l/sora/state")
    assert paths.hub_cache_dir(home) == Path("/h/.cache/huggingface/hub")
    assert paths.hub_cache_dir({**home, "HF_HOME": "/hf"}) == Path("/hf/hub")
    assert paths.hub_cache_dir({**home, "HF_HUB_CACHE": "/hub"}) == Path("/hub")


def test_manifest_rows_start_from_their_family(tmp_path: Path) -> None:
    file = tmp_path / "manifest.toml"
    head = 'schema = 1\n[[model]]\nname = "x"\nsource = "folder"\n'
    file.write_text(head + 'family = "wan2.2-ti2v"\nfps = 12.0\ntrained_sides = [32, 64]\n')
    (row,) = manifest.read_manifest(file)
    assert (row.name, row.spec.fps, row.spec.trained_sides) == ("x", 12.0, (32, 64))
    assert row.spec.num_inference_steps == 50
    assert row.folder() is None
    for text, message in (
        (head + 'family = "none"', "unknown family 'none'"),
        (head + 'family = "tiny"\nspeed = 3', "unknown key 'speed'"),
        ("schema = 2", "schema 2"),
        ("schema", "not valid TOML"),
    ):
        file.write_text(text)
        with pytest.raises(WeightsError, match=message):
            manifest.read_manifest(file)
