"""The benchmark: it compares equals, refuses to time what differs, and says what it measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sora_cli.bench import __main__ as bench
from sora_cli.bench import breakdown, cases, ceilings, loading, memory, report, timing
from sora_cli.bench.cases import CUDA_CASES, Case, cpu_cases, scaled
from sora_cli.bench.measure import Conditions, ParityError, measure
from sora_cli.bench.workloads import Place, prepared

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
KEYS = ["name", "dtype", "ours_s", "theirs_s", "ratio", "flops", "share_of_matmul_rate",
        "peak_memory"]  # fmt: skip
SMALL = ["--scale", "0.04", "--rounds", "1", "--no-ceilings"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def named(name: str) -> Case:
    table = {case.name: case for case in (*CUDA_CASES, *bench.cases("cpu"))}
    return table[name]


def conditions(**more: Any) -> Conditions:
    given: dict[str, Any] = {
        "table": "cpu", "device": CPU, "scale": 0.04, "rounds": 1, "seconds": 10, "compiled": False
    }  # fmt: skip
    return Conditions(**given | more)


def test_every_workload_of_the_gpu_runs_here_when_it_is_small(
    tmp_path: Path, capsys: Capture
) -> None:
    """Both sides agree on each, and the JSON on stdout and in the file is what was promised."""
    out, page = tmp_path / "speed.json", tmp_path / "speed.md"
    words = ["--table", "cuda", "--json", "--out", str(out), "--write", str(page), *SMALL]
    assert bench.main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads(out.read_text())
    assert [row["name"] for row in result["workloads"]] == [case.name for case in CUDA_CASES]
    assert {"machine", "versions", "date", "command"} <= result.keys()
    for row, beside in zip(result["workloads"], result["details"], strict=True):
        assert list(row) == KEYS
        assert row["ours_s"] > 0 and row["peak_memory"] > 0
        assert (row["flops"] is None) == (named(row["name"]).kind in ("load", *cases.WHOLE))
        assert ("feed-forward in 8 bits" in beside["variants"]) == named(row["name"]).fp8
        if row["theirs_s"] is None:
            assert beside["missing"]
        else:
            assert row["ratio"] == row["theirs_s"] / row["ours_s"]
            assert beside["difference"] <= beside["tolerance"]
    assert [path.name for path in tmp_path.iterdir()] in (
        [out.name, page.name], [page.name, out.name]
    )  # fmt: skip
    assert "not a measurement" in page.read_text()


def test_the_cpus_table_runs_and_agrees(capsys: Capture) -> None:
    """The embedded model's step and pipeline, whose weights both sides read from the package."""
    words = ["--only", "tiny-step,tiny-pipeline", "--dtype", "float32", "--json", *SMALL]
    assert bench.main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in result["workloads"]] == ["tiny-step", "tiny-pipeline"]
    assert all(row["ratio"] for row in result["workloads"])
    assert result["details"][0]["difference"] < 1e-5


@pytest.mark.parametrize(
    ("name", "scale", "within"),
    [
        ("21m-step", 0.5, 0.03), ("tiny-step", 0.5, 0.03), ("vae21-decode", 0.2, 0.01),
        ("vae22-decode", 0.2, 0.01), ("vae21-encode", 0.2, 0.01), ("vae22-encode", 0.2, 0.01),
        ("umt5-xxl", 0.02, 0.1),
    ],
)  # fmt: skip
def test_flops_are_those_that_torch_counts(
    name: str, scale: float, within: float, tmp_path: Path
) -> None:
    """The formulae against diffusers' networks; small ones have more beside their matrices."""
    case = scaled(named(name), scale)
    plain = sdpa_kernel(SDPBackend.MATH)  # of attention the counter knows only the plain form
    place = Place(device=CPU, dtype=torch.float32, folder=tmp_path)
    with torch.no_grad(), prepared(case, place) as pair:
        assert pair.theirs is not None
        with plain, FlopCounterMode(display=False) as counter:
            pair.theirs()
    assert case.flops == pytest.approx(counter.get_total_flops(), rel=within)


def test_published_sizes_are_in_the_table() -> None:
    """TFLOP as performance figures of these models are given everywhere."""
    teraflops = {case.name: (case.flops or 0) / 1e12 for case in CUDA_CASES}
    assert teraflops["1.3b-480p-step"] == pytest.approx(2 * 283.0, abs=0.1)
    assert teraflops["5b-704p-step"] == pytest.approx(2 * 517.0, abs=0.2)
    assert teraflops["14b-blocks-720p"] == pytest.approx(6523.4 / 10, abs=0.1)
    assert teraflops["vae22-704p-decode"] == pytest.approx(2011, abs=0.5)
    assert [case.dtypes for case in CUDA_CASES] == [("bfloat16",)] * len(CUDA_CASES)
    small = named("21m-step")
    assert 20e6 < small.shapes.transformer.parameters < 21e6
    time, tall, wide = small.latent_size
    assert time * tall * wide // 4 == 2048


def test_what_differs_is_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """One line that says by how much, exit code 1, and the other workloads are measured."""
    strict = replace(named("14b-blocks-480p"), tolerances={"bfloat16": 0.0})
    with pytest.raises(ParityError, match="nothing was timed"):
        measure(scaled(strict, 0.04), "bfloat16", conditions())
    monkeypatch.setattr(bench, "CUDA_CASES", (strict, named("14b-blocks-720p")))
    assert bench.main(["--table", "cuda", "--json", *SMALL]) == 1
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert [row["name"] for row in result["workloads"]] == ["14b-blocks-720p"]
    (why,) = result["refused"]
    assert why.startswith("14b-blocks-480p in bfloat16: ours differs from diffusers by ")
    assert captured.err.count("error: ") == 1 and why in captured.err
    assert f"- {why}" in report.markdown(result)


def test_without_diffusers_theirs_is_null_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    only = "5b-704p-step,vae22-704p-decode,weights-5b,umt5-xxl"
    assert bench.main(["--table", "cuda", "--only", only, "--json", *SMALL]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["workloads"]) == 4
    for row, beside in zip(result["workloads"], result["details"], strict=True):
        assert row["theirs_s"] is None and row["ratio"] is None and row["ours_s"] > 0
        assert beside["missing"] == "diffusers is not installed: pip install diffusers==0.42.1"
    assert "diffusers is not installed" in report.markdown(result)


@pytest.mark.slow
def test_theirs_is_timed_compiled_too() -> None:
    """As on a GPU: regional compilation comes last, because it changes theirs."""
    case = scaled(named("14b-blocks-480p"), 0.04)
    _, beside = measure(case, "bfloat16", conditions(compiled=True))
    assert beside["theirs_compiled_s"] > 0 and beside["compiled_ratio"] > 0


def test_time_that_runs_out_leaves_the_rest_and_says_so(capsys: Capture) -> None:
    assert bench.main(["--table", "cuda", "--minutes", "1e-9", "--json", *SMALL]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["workloads"] == []
    assert len(result["left"]) == len(CUDA_CASES)
    assert "1.3b-480p-step in bfloat16: no time was left" in report.markdown(result)


def test_a_second_sitting_adds_what_is_missing(tmp_path: Path, capsys: Capture) -> None:
    """A GPU is lent for minutes at a time: rows that are there already are not measured again."""
    words = ["--table", "cuda", "--write", str(tmp_path / "speed.md"), *SMALL]
    assert bench.main([*words, "--only", "weights-5b"]) == 0
    first = json.loads((tmp_path / "speed.json").read_text())
    assert bench.main([*words, "--only", "weights-5b,umt5-xxl", "--add"]) == 0
    both = json.loads((tmp_path / "speed.json").read_text())
    assert both["workloads"][0] == first["workloads"][0]
    assert [row["name"] for row in both["workloads"]] == ["weights-5b", "umt5-xxl"]
    assert both["command"].startswith(first["command"] + " && ")
    capsys.readouterr()
    assert bench.main([*words, "--scale", "0.05", "--add"]) == 2
    assert "at another scale" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--only", "tiny-stepp"], 2, "no such workload: tiny-stepp\nhint: --only tiny-step,21m"),
        (["--rounds", "0"], 2, "--rounds must be more than 0"),
        (["--device", "cuda"], 4, "no CUDA device here"),
        (["--of", "nowhere.json"], 2, "holds no figures"),
    ],
)
def test_bad_usage_is_refused_with_the_next_command(
    words: list[str], code: int, said: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(words) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and said in captured.err
    assert "hint: " in captured.err


def test_the_list_names_every_workload(capsys: Capture) -> None:
    assert bench.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [case.name for case in bench.cases("cpu")]


def test_sides_take_turns_and_the_clock_ends_it() -> None:
    """Nobody is always first, and a round that has begun is finished."""
    order: list[str] = []
    sides = {name: (lambda name=name: order.append(name)) for name in ("a", "b", "c")}
    laps = timing.interleave(sides, rounds=3, seconds=60, device=CPU)
    assert "".join(order) == "abc" + "cba" + "abc"
    assert [len(some) for some in laps.values()] == [3, 3, 3]
    once = timing.interleave(sides, rounds=100, seconds=0, device=CPU)
    assert [len(some) for some in once.values()] == [1, 1, 1]


def test_quartiles() -> None:
    found = timing.spread([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found.lower, found.median, found.upper) == (2, 3, 4)
    assert timing.spread([7.0]) == timing.Spread(median=7, lower=7, upper=7)


def test_memory_grows_by_what_is_allocated_each_time_anew() -> None:
    """The second call finds freed memory in the allocator: it has to be given back first."""
    size = 48 << 20

    def allocate() -> float:
        return float(torch.ones(size, dtype=torch.uint8)[-1])

    allocate()
    for _ in range(2):
        grown = timing.growth(allocate, CPU)
        if sys.platform == "linux":
            assert grown is not None and 0.9 * size < grown < 1.2 * size


def test_where_the_time_goes_is_said_in_shares() -> None:
    """Every operation has one kind; what is multiplied is found, and bounds the ratio."""
    x = torch.randn(64, 64)
    shares = breakdown.breakdown(lambda: (x @ x).add_(x))
    assert set(shares) == {*breakdown.KINDS, breakdown.PYTHON}
    assert sum(shares.values()) == pytest.approx(1) and shares["matrix products"] > 0
    names = {
        "aten::addmm": "matrix products", "mkldnn::_linear_pointwise": "matrix products",
        "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
        "aten::mkldnn_convolution": "convolutions", "aten::native_layer_norm": "norms",
        "aten::copy_": "copies and conversions", "aten::view": "all else",
    }  # fmt: skip
    assert {name: breakdown.kind_of(name) for name in names} == names
    kernels = {
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma": "attention",
        "sm90_xmma_fprop_implicit_gemm_bf16": "convolutions",
        "nvjet_tst_128x256_64x4_2x1_v_bz_bias_tnt": "matrix products",
        "residual_norm_kernel": "norms", "memcpy htod (pinned)": "copies and conversions",
        "at::native::vectorized_elementwise_kernel": "sums, products, activations",
    }  # fmt: skip
    found = {name: breakdown.kind_of(name, breakdown.KERNELS) for name in kernels}
    assert found == kernels and {*breakdown.KERNELS} == {*breakdown.KINDS}
    sides = {"ours": dict.fromkeys(shares, 0.0) | {"matrix products": 0.8, "norms": 0.2}}
    row = {"dtype": "float32", "ratio": 1.2}
    (cells,) = breakdown.rows([row], [{"what": "it", "breakdown": sides}])
    assert cells[-1] == "1.50×" and len(cells) == len(breakdown.HEADS)


@pytest.mark.parametrize("program", [memory, loading], ids=["memory", "loading"])
def test_no_card_is_one_line_and_an_exit_code(
    program: ModuleType, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert program.main(["--device", "cuda"]) == 4
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: no CUDA device here")


def test_ceilings_are_rates_or_reasons() -> None:
    found = list(ceilings.measure("cuda", CPU, (torch.bfloat16,), 0.004))
    assert {ceiling.unit for ceiling in found} == {"GFLOP/s", "GB/s"}
    backends = ceilings.SIZES["cuda"].backends
    assert len([c for c in found if c.name.startswith("attention")]) == 2 * len(backends)
    assert len([c for c in found if c.name.startswith("query, key and value")]) == 2
    assert all((c.rate is None) == bool(c.why) for c in found)
    assert all(c.rate is None or c.rate > 0 for c in found)
    assert any(c.rate for c in found if "attention" in c.name)


def test_a_case_shrinks_to_what_its_networks_take() -> None:
    """Scaled sizes are legal, and never larger than the case's own."""
    for case in (*CUDA_CASES, *bench.cases("cpu")):
        for scale in (1e-6, 0.01, 0.3, 0.9, 1.0):
            small = scaled(case, scale)
            time, tall, wide = small.latent_size
            _, ph, pw = small.transformer.patch_size
            assert time >= 1 and tall % ph == 0 < tall and wide % pw == 0 < wide
            assert small.transformer.hidden_size <= case.transformer.hidden_size
            assert small.width <= case.width and small.num_frames <= case.num_frames
        assert scaled(case, 1.0) == case
    assert cases.CUDA_CASES is CUDA_CASES and cpu_cases is cases.cpu_cases


def test_the_documented_figures_are_the_tools_own(capsys: Capture, tmp_path: Path) -> None:
    """docs/reference/speed.md says what docs/reference/speed.json says, and nothing else."""
    figures, page = ROOT / "docs/reference/speed.json", tmp_path / "speed.md"
    assert bench.main(["--of", str(figures), "--write", str(page)]) == 0
    assert page.read_text() == (ROOT / "docs/reference/speed.md").read_text()
    result = json.loads(figures.read_text())
    assert all(list(row) == KEYS for row in result["workloads"]) and not result["refused"]
    assert result["scale"] == 1
