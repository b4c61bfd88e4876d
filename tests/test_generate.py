"""The whole path with the embedded model: from a command line to a file that plays."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sora_cli.cli.main import main
from sora_cli.cli.output import Output
from sora_cli.media import image, output
from sora_cli.media import recipe as recipes
from sora_cli.models.specs import FAMILIES
from sora_cli.weights import load, store
from tests.tiny_runs import PROMPT, SMALL, copy_of_tiny, frames_of, generate, names_in, script

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parents[1]
SCHEMA = json.loads((ROOT / "docs/reference/recipe.schema.json").read_text(encoding="utf-8"))
MEASURED = ("path", "timings", "peak_memory")  # differ between the printed and the embedded recipe


# ---------------------------------------------------------------- the same picture for a seed


def test_a_seed_means_the_same_frames_bit_for_bit(here: Path, capsys: Capture) -> None:
    assert generate("-o", "a.mkv") == 0
    assert capsys.readouterr().out == "a.mkv\n"
    assert generate("-o", "b.mkv") == 0
    assert generate("-o", "c.mkv", seed=2) == 0
    first, again, other = (frames_of(here / name) for name in ("a.mkv", "b.mkv", "c.mkv"))
    assert first.shape == (5, 64, 64, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert names_in(here) == ["a.mkv", "b.mkv", "c.mkv"]


def test_a_remembered_context_changes_nothing(
    here: Path, own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert generate("-o", "a.mkv") == 0
    text = own_folders / "cache" / "sora" / "text"
    entries = names_in(text)
    assert len(entries) == 2  # the prompt and the negative prompt

    loaded = []
    encoder = load.text_encoder
    monkeypatch.setattr(load, "text_encoder", lambda *a, **k: loaded.append(1) or encoder(*a, **k))
    assert generate("-o", "b.mkv") == 0
    assert loaded == []
    (text / entries[0]).write_bytes((text / entries[0]).read_bytes()[:-1] + b"\x55")
    (text / entries[1]).write_bytes(b"")
    assert generate("-o", "c.mkv") == 0
    assert loaded == [1]
    first, *others = (frames_of(here / name) for name in ("a.mkv", "b.mkv", "c.mkv"))
    assert all(np.array_equal(first, frames) for frames in others)


def test_several_videos_have_several_seeds(here: Path, capsys: Capture) -> None:
    assert generate("--num-videos", "2", "-o", "clip.mkv", "--json", seed=7) == 0
    made = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["path"], row["seed"]) for row in made] == [("clip-7.mkv", 7), ("clip-8.mkv", 8)]
    assert all(row["timings"]["denoise"] < 60 for row in made)
    assert generate("-o", "alone.mkv", seed=8) == 0
    assert np.array_equal(frames_of(here / "clip-8.mkv"), frames_of(here / "alone.mkv"))
    assert main(["image", PROMPT, "--steps", "1", "--size", "64x64", "--no-expand", "--seed", "7",
                 "--num-images", "2", "-o", "still.v1.png"]) == 0  # fmt: skip
    assert {"still.v1-7.png", "still.v1-8.png"} <= set(names_in(here))


# ---------------------------------------------------------------- every kind of output


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.webp", "a.mkv", "frames.v1/"])
def test_every_format_carries_its_recipe(here: Path, capsys: Capture, name: str) -> None:
    assert generate("-o", name, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    jsonschema.validate(printed, SCHEMA)
    assert printed["path"] == name
    assert {"load", "encode", "denoise", "decode"} <= set(printed["timings"])
    assert main(["info", name, "--json"]) == 0
    embedded = json.loads(capsys.readouterr().out)
    jsonschema.validate(embedded, SCHEMA)
    for key in MEASURED:
        printed.pop(key), embedded.pop(key, None)
    assert embedded == printed
    assert (printed["size"], printed["num_frames"], printed["seed"]) == ([64, 64], 5, 1)
    assert printed["weights"].startswith("sha256:")
    if name.endswith("/"):
        assert names_in(here / name) == [*(f"{i:06d}.png" for i in range(1, 6)), "recipe.json"]
    elif name.endswith(".webp"):
        with Image.open(name) as picture:
            assert (picture.n_frames, picture.size) == (5, (64, 64))
    else:
        assert len(frames_of(here / name)) == 5


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.gif", "a.webp", "frames/", "a.png", "a.jpg"])
def test_no_metadata_leaves_the_recipe_out(here: Path, capsys: Capture, name: str) -> None:
    """Neither the recipe nor a word of the prompt is in the file; --json still tells."""
    command = "image" if name.endswith(("png", "jpg")) else "generate"
    words = ["--size", "64x64", "--steps", "1", "--seed", "1", "--no-expand", "--no-metadata"]
    words += ["--num-frames", "5"] if command == "generate" else []
    assert main([command, PROMPT, *words, "-o", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == PROMPT
    made = sorted((here / name).glob("*")) if name.endswith("/") else [here / name]
    assert made and not any(path.suffix == ".json" for path in made)
    assert not any(PROMPT.encode() in path.read_bytes() for path in made)
    assert main(["info", name]) == 2
    assert "carries no recipe" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", output.IMAGE_SUFFIXES)
def test_images(here: Path, capsys: Capture, suffix: str) -> None:
    words = ["image", PROMPT, "--size", "64x96", "--steps", "2", "--seed", "1", "--no-expand"]
    assert main([*words, "-o", f"a{suffix}"]) == 0
    assert capsys.readouterr().out == f"a{suffix}\n"
    picture = image.read(here / f"a{suffix}")
    assert picture.shape == (96, 64, 3)
    assert picture.std() > 1
    recipe = recipes.read(here / f"a{suffix}")
    jsonschema.validate(recipe, SCHEMA)
    assert (recipe["num_frames"], recipe["size"]) == (1, [64, 96])


def test_the_script_prints_exactly_one_path(here: Path) -> None:
    process = script("generate", PROMPT, *SMALL, "--seed", "3", cwd=here)
    printed, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert printed == b"a-red-ball-bounces-on-the-snow-at-sunset-3.mp4\n"
    assert names_in(here) == [printed.decode().strip()]
    assert b"denoise 2/2" in told and b"\x1b" not in told


def test_a_stream_plays_and_carries_its_recipe(here: Path) -> None:
    process = script("generate", PROMPT, *SMALL, "--seed", "1", "-q", "-o", "-", cwd=here)
    made, told = process.communicate(timeout=120)
    assert (process.returncode, told) == (0, b"")
    assert len(frames_of(made)) == 5
    assert names_in(here) == []
    (here / "got.mp4").write_bytes(made)
    assert recipes.read(here / "got.mp4")["prompt"] == PROMPT


def test_a_name_of_its_own_never_overwrites(here: Path, capsys: Capture) -> None:
    assert generate(seed=5, prompt="Ein Ball") == 0
    before = (here / "ein-ball-5.mp4").read_bytes()
    assert generate(seed=5, prompt="Ein Ball") == 0
    assert capsys.readouterr().out == "ein-ball-5.mp4\nein-ball-5-2.mp4\n"
    assert (here / "ein-ball-5.mp4").read_bytes() == before


def test_a_random_seed_is_said_and_recorded(here: Path, capsys: Capture) -> None:
    assert generate("-o", "a.mkv", seed=None) == 0
    seed = recipes.read(here / "a.mkv")["seed"]
    assert f"note: seed {seed}\n" in capsys.readouterr().err
    assert generate("-o", "b.mkv", seed=seed) == 0
    assert np.array_equal(frames_of(here / "a.mkv"), frames_of(here / "b.mkv"))


# ---------------------------------------------------------------- animate


def test_animate_starts_with_the_picture(here: Path, capsys: Capture) -> None:
    y, x = np.mgrid[:67, :101]
    given = np.stack([140 + x // 2, 90 + y, 200 - x], -1).clip(0, 255).astype(np.uint8)
    Image.fromarray(given).save("odd.png")
    words = ["animate", "odd.png", "the ball rolls", *SMALL, "--seed", "1", "-o", "a.mkv"]
    assert main([*words, "--dtype", "float32"]) == 0
    assert capsys.readouterr().out == "a.mkv\n"
    frames = frames_of(here / "a.mkv")
    first = image.fit(given, 64, 64)

    video = torch.from_numpy(first).permute(2, 0, 1)[None, :, None] / 127.5 - 1  # [1, 3, 1, H, W]
    with load.vae(store.locate("tiny").folder, device="cpu", dtype=torch.float32) as vae:
        floor = vae.decode(vae.encode(video))[0, :, 0].permute(1, 2, 0)  # [H, W, 3]
    # Nothing that happens later reaches frame 0: it is what the autoencoder makes of the picture.
    assert np.abs(frames[0] - ((floor + 1) * 127.5).numpy()).max() <= 1
    error = ((frames[0].astype(float) - first) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 15
    assert not np.array_equal(frames[0], frames[-1])


def test_animate_needs_no_prompt(here: Path, capsys: Capture) -> None:
    Image.new("RGB", (64, 64), (200, 30, 30)).save("red.png")
    assert main(["animate", "red.png", *SMALL[:-1], "--seed", "1", "-o", "a.mp4"]) == 0
    said = capsys.readouterr().err
    assert "note: no prompt: what is seen in red.png: " in said and "one small world" in said
    assert f"red.png: {recipes.read(here / 'a.mp4')['prompt']}\n" in said


# ---------------------------------------------------------------- prompts of all kinds


def test_a_prompt_from_stdin(here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a blue cube\n"))
    assert generate("-o", "a.mp4", prompt="-") == 0
    assert recipes.read(here / "a.mp4")["prompt"] == "a blue cube"


def test_ten_thousand_words(here: Path, capsys: Capture) -> None:
    prompt = "a red ball on the snow " * 1667
    assert generate(prompt=prompt) == 0
    captured = capsys.readouterr()
    assert "note: the prompt is longer than the 64 tokens" in captured.err
    path = here / captured.out.strip()
    assert len(path.name) < 120
    assert recipes.read(path)["prompt"] == prompt.strip()
    assert generate("-o", "again.gif", prompt=prompt) == 0
    assert "note: the prompt is longer" in capsys.readouterr().err  # though it was remembered
    assert recipes.read(here / "again.gif")["prompt"] == prompt.strip()


@pytest.mark.parametrize(
    ("prompt", "name"),
    [("🏀 on the snow 🌨️", "on-the-snow"), ("🏀🏀", "sora"), ("雪の上の赤い玉", "雪の上の赤い玉"),
     ("un ballon  rouge\n\tqui rebondit &amp; roule", "un-ballon-rouge-qui-rebondit-amp-roule")],
)  # fmt: skip
def test_prompts_in_any_script(here: Path, capsys: Capture, prompt: str, name: str) -> None:
    assert generate(prompt=prompt) == 0
    assert capsys.readouterr().out == f"{name}-1.mp4\n"
    assert recipes.read(here / f"{name}-1.mp4")["prompt"] == prompt


def test_words_never_learned_are_named(here: Path, tmp_path: Path, capsys: Capture) -> None:
    model = copy_of_tiny(tmp_path / "model")
    (model / "SHA256SUMS").unlink()
    (model / "language_model").mkdir(exist_ok=True)
    (model / "language_model" / "config.json").write_text("{}")
    (model / "language_model" / "known_words.txt").write_text("a\nred\nball\non\nthe\nsnow\n")
    assert generate("-m", model, "-o", "a.mp4", prompt="雪の上の赤い玉 on the snow") == 0
    note = "note: tiny never learned: 雪の上の赤い玉; get an open-domain model: sora weights list"
    assert note in capsys.readouterr().err
    assert generate("-m", model, "-o", "b.mp4", prompt="red balls") == 0
    assert "never learned" not in capsys.readouterr().err


# ---------------------------------------------------------------- manners


def test_quiet_is_silent(here: Path, capsys: Capture) -> None:
    assert generate("-o", "a.mp4", "-q", "--size", "70x64", seed=None, prompt="雪 🏀") == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("a.mp4\n", "")


def test_progress_as_json_tells_every_phase(here: Path, capsys: Capture) -> None:
    assert generate("-o", "a.mp4", "--progress", "json") == 0
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    phases = [event["phase"] for event in events if event["event"] == "progress"]
    assert list(dict.fromkeys(phases)) == ["load", "encode", "denoise", "decode", "write"]
    steps = [(e["step"], e["total"]) for e in events if e.get("phase") == "denoise"]
    assert steps == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize("no_color", [True, False])
def test_a_bar_on_a_terminal(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, no_color: bool
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    stdout, stderr = io.StringIO(), Terminal()
    words = ["generate", PROMPT, *SMALL, "--seed", "1", "-o", "a.mp4"]
    assert main(words, output=Output(stdout=stdout, stderr=stderr)) == 0
    assert stdout.getvalue() == "a.mp4\n"
    shown = stderr.getvalue()
    assert "denoise" in shown and "decode" in shown
    coloured = bool(re.search(r"\x1b\[[0-9;]*3[0-9]", shown))
    assert coloured is not no_color


def test_the_users_own_default_model(
    here: Path, tmp_path: Path, own_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    model = copy_of_tiny(tmp_path / "my-model")
    index = json.loads((model / "model_index.json").read_text(encoding="utf-8"))
    del index["_name_or_path"]
    (model / "model_index.json").write_text(json.dumps(index))
    (model / "SHA256SUMS").unlink()
    monkeypatch.setattr("sys.platform", "linux")
    settings = own_folders / "config" / "sora" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"model = {json.dumps(str(model))}\n")
    assert generate("-o", "a.mp4") == 0
    assert recipes.read(here / "a.mp4")["model"] == "my-model"
    assert generate("-o", "b.mp4", "-m", "tiny") == 0
    assert recipes.read(here / "b.mp4")["model"] == "tiny"
    monkeypatch.setenv("SORA_MODEL", "tinny")
    assert generate("-o", "c.mp4") == 2
    assert "error: unknown model 'tinny'" in capsys.readouterr().err


# ---------------------------------------------------------------- a dry run


def test_a_dry_run_says_what_it_takes_and_makes_nothing(here: Path, capsys: Capture) -> None:
    assert main(["generate", PROMPT, "--dry-run", "--json", "-o", "a.mp4"]) == 0
    captured = capsys.readouterr()
    plan = json.loads(captured.out)
    spec = FAMILIES["tiny"]
    assert plan["size"] == [spec.width, spec.height]
    latent_frames = (spec.num_frames - 1) // 4 + 1
    assert plan["tokens"] == latent_frames * spec.width * spec.height // spec.size_multiple**2
    assert plan["weights_bytes"] == sum(
        path.stat().st_size for path in store.locate("tiny").folder.rglob("*.safetensors")
    )
    assert captured.err == ""
    assert names_in(here) == []


def test_a_dry_run_counts_as_torch_does(capsys: Capture) -> None:
    words = ["generate", PROMPT, "--dry-run", "--json", "--size", "160x96", "--num-frames", "25"]
    assert main([*words, "--steps", "10", "--guidance-scale", "3"]) == 0
    plan = json.loads(capsys.readouterr().out)
    spec = store.locate("tiny").spec
    latents = torch.zeros(1, 48, 7, 6, 10)
    with load.dit(store.locate("tiny").folder, device="cpu", dtype=torch.float32) as dit:
        context = torch.zeros(1, spec.text_len, dit.config.text_dim)
        # The counter knows only the plain form of attention, and no fused one of the feed-forward,
        # which are for inference.
        plain = sdpa_kernel(SDPBackend.MATH)
        with plain, FlopCounterMode(display=False) as counter, torch.enable_grad():
            dit(latents, torch.tensor([500.0]), context)
    assert plan["tokens"] == 7 * 6 * 10
    assert plan["denoising_flops"] == pytest.approx(20 * counter.get_total_flops(), rel=0.02)
    assert main([*words, "--steps", "10", "--guidance-scale", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["denoising_flops"] == plan["denoising_flops"] // 2


def test_bad_input_is_refused_before_torch_is_loaded(here: Path) -> None:
    code = (
        "import sys; from sora_cli.cli.main import main\n"
        "codes = [main(['generate', 'p', *words.split()]) for words in "
        "('--size 0x0', '-m tinny', '-o a.xyz', '--duration 1000h')]\n"
        "heavy = {'torch', 'transformers', 'tokenizers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy or codes != [2, 2, 2, 2] else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_loads_no_compiler(here: Path) -> None:
    """torch's compiler and transformers take seconds to import; a plain run needs neither."""
    words = ["generate", PROMPT, *SMALL, "--seed", "1", "-o", "a.mp4"]
    code = (
        f"import sys; from sora_cli.cli.main import main; code = main({words!r})\n"
        "heavy = {'torch._dynamo', 'torch._inductor', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
