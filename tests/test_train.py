"""The recipes, from rendered clips to a model folder that the pipeline runs, at small size."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sora_cli.train import dataset, dit, export, loop, vae
from sora_cli.train.dataset import Bucket

TINY = Path(export.__file__).parents[1] / "assets" / "tiny"


def run(module: object, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    """A recipe as `python -m` runs it."""
    monkeypatch.setattr(sys, "argv", ["recipe", *map(str, words)])
    module.main()  # type: ignore[attr-defined]


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards of two little clips and pictures."""
    monkeypatch.setattr(dataset, "SHARD", 2)
    clips = Bucket(width=48, height=32, num_frames=9, share=0.6)
    pictures = Bucket(width=32, height=32, num_frames=1, share=0.4)
    monkeypatch.setattr(dataset, "BUCKETS", (clips, pictures))
    monkeypatch.setattr(vae, "CROPS", ((9, 32, 2, 0.7), (1, 32, 2, 0.3)))
    monkeypatch.setattr(dit, "TOKENS_A_STEP", 40)
    assert len({dataset.shard_bucket(n).name for n in range(4)}) == 2
    for shard in range(4):
        dataset.render_shard(tmp_path / "pool", shard)
    return tmp_path / "pool"


def test_recipes_lead_from_clips_to_a_model_that_runs(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sora_cli.cli.main import main

    out, target = tmp_path / "run", tmp_path / "model"
    shutil.copytree(TINY / "tokenizer", out / "tokenizer")
    run(vae, monkeypatch, pool, out, "--steps", 2, "--minutes", 5)
    run(vae, monkeypatch, pool, out, "--steps", 1, "--minutes", 5, "--decoder-only")
    run(dataset, monkeypatch, pool, "--encode", out)
    assert len(dataset.latent_shards(pool / "latents")) == 4
    words = (pool / "latents", out / "tokenizer", out)
    for steps in (1, 2):  # the second goes on from the first
        run(
            dit, monkeypatch, *words, "--steps", steps, "--read", 1, "--minutes", 5,
            *(("--sheets", TINY) if steps == 2 else ()),
        )  # fmt: skip
    (sheet,) = (out / "transformer-run").glob("sheet-*.png")
    assert Image.open(sheet).width > 6 * 160, "six frames a clip"
    run(export, monkeypatch, out, target)
    runs = json.loads((target / "provenance.json").read_text())["runs"]
    assert {name: row["steps"] for name, row in runs.items()} == {
        "transformer": 2,
        "vae": 2,
        "vae_decoder": 1,
    }
    capsys.readouterr()
    small = ("--size", "32x32", "--num-frames", "5", "--steps", "1", "--no-expand", "--seed", "1")
    path = str(tmp_path / "clip.mkv")
    assert main(["generate", "a red ball", "-m", str(target), *small, "-o", path]) == 0
    assert capsys.readouterr().out == f"{path}\n"

    # Elsewhere the optimizers are not at hand: from the weights alone.
    other = tmp_path / "other"
    run(vae, monkeypatch, pool, other, "--start", target, "--steps", 0)
    kept = json.loads((other / "vae-run" / export.START).read_text())
    assert kept["steps"] == 2
    for file in (target / "vae").glob("*.safetensors"):
        assert file.read_bytes() == (other / "vae" / file.name).read_bytes()
    run(dit, monkeypatch, *words[:2], other, "--start", target, "--steps", 0, "--tokens", 80)
    for part in ("transformer", "text_encoder"):
        for file in (target / part).glob("*.safetensors"):
            assert file.read_bytes() == (other / part / file.name).read_bytes()

    parts = tmp_path / "parts"  # a part alone, into a model: of the others is known what was
    shutil.copytree(other / "vae-run", parts / "vae-run")
    shutil.copytree(other / "vae", parts / "vae")
    run(export, monkeypatch, parts, target)
    runs = json.loads((target / "provenance.json").read_text())["runs"]
    assert set(runs) == {"transformer", "vae"} and runs["transformer"]["steps"] == 2

    frozen = tmp_path / "frozen"  # longer, and nothing new of words
    run(dit, monkeypatch, *words[:2], frozen, "--start", target, "--steps", 2, "--freeze-text")
    for part, kept in (("transformer", False), ("text_encoder", True)):
        (file,) = (target / part).glob("*.safetensors")
        assert (file.read_bytes() == (frozen / part / file.name).read_bytes()) is kept


def test_a_recipe_goes_on_where_it_stopped(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    for steps in (1, 3):
        run(vae, monkeypatch, pool, out, "--steps", steps, "--minutes", 5)
    state = loop.load_checkpoint(out / "vae-run" / "checkpoint.pt")
    assert state is not None and state["run"]["steps"] == 3


def test_a_decoder_may_be_written_halfway_to_what_it_learned(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, out = tmp_path / "start", tmp_path / "run"
    run(vae, monkeypatch, pool, start, "--steps", 1, "--minutes", 5)
    words = ("--decoder-only", "--start", start, "--steps", 3, "--minutes", 5)
    written = []
    for halfway in ((), ("--halfway",)):  # the second has nothing left to train
        run(vae, monkeypatch, pool, out, *words, *halfway)
        (file,) = (out / "vae").glob("*.safetensors")
        written.append(load_file(file))
    (file,) = (start / "vae").glob("*.safetensors")
    first, (last, half) = load_file(file), written
    moved = [name for name in last if not torch.equal(first[name], last[name])]
    assert moved and all("decoder" in name or "post_quant" in name for name in moved)
    for name in half:
        middle = (first[name].float() + last[name].float()) / 2
        torch.testing.assert_close(half[name].float(), middle, rtol=2e-3, atol=1e-4)


def test_decoder_training_leaves_the_encoder_alone(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents that are already made stay valid."""
    out = tmp_path / "run"
    run(vae, monkeypatch, pool, out, "--steps", 1, "--minutes", 5)
    before = loop.load_checkpoint(out / "vae-run" / "checkpoint.pt")
    run(vae, monkeypatch, pool, out, "--steps", 2, "--minutes", 5, "--decoder-only")
    after = loop.load_checkpoint(out / "vae_decoder-run" / "checkpoint.pt")
    assert before is not None and after is not None
    for name, tensor in before["ema"].items():
        same = torch.equal(tensor, after["ema"][name])
        assert same or name.startswith(("decoder", "conv2")), name


def test_decoder_training_keeps_the_latents_statistics(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the transformer's latents would be scaled by one mean and read by another."""
    out = tmp_path / "run"
    run(vae, monkeypatch, pool, out, "--steps", 1, "--minutes", 5)
    config = out / "vae" / "config.json"
    before = config.read_text()
    dataset.render_shard(pool, 5)  # other clips, other statistics
    run(vae, monkeypatch, pool, out, "--steps", 1, "--minutes", 5, "--decoder-only")
    assert config.read_text() == before


def test_a_dry_run_leaves_nothing(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    run(vae, monkeypatch, pool, out, "--dry-run")
    assert not out.exists()


def test_muon_steps_are_orthogonal() -> None:
    """Newton–Schulz brings every singular value near 1, for wide and tall matrices alike, and
    matrices in one batch know nothing of each other."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 24, 96), (2, 96, 24)):
        matrices = (
            torch.randn(shape, generator=generator) * torch.tensor([1.0, 50.0])[:, None, None]
        )
        steps = loop.orthogonalize(matrices)
        values = torch.linalg.svdvals(steps)
        assert float(values.min()) > 0.6 and float(values.max()) < 1.3
        alone = loop.orthogonalize(matrices[1:])
        torch.testing.assert_close(steps[1:], alone, atol=0.02, rtol=0)  # bf16


def test_given_latents_are_held_out_of_the_loss(pool: Path, tmp_path: Path) -> None:
    """An error where latents are given costs nothing; elsewhere it does."""
    latents = torch.zeros(1, 48, 3, 2, 3)
    mask = torch.tensor([[0.0, 1.0, 1.0]])

    class Zero(torch.nn.Module):
        def forward(
            self,
            noisy: torch.Tensor,
            timesteps: torch.Tensor,
            ids: torch.Tensor,
            attention: torch.Tensor,
        ) -> torch.Tensor:
            assert float(timesteps[0, 0]) == 0 and float(timesteps[0, 1]) > 0
            assert torch.equal(noisy[:, :, 0], given[:, :, 0])
            velocity = torch.zeros_like(noisy)
            velocity[:, :, 0] = 1e6
            return velocity

    given = torch.full_like(latents, 0.5)
    batch = dit.Batch(
        latents=latents, given=given, mask=mask, given_sigma=torch.zeros(1), prompts=["a red ball"]
    )
    tokenizer = dit.Tokenizer.from_folder(TINY / "tokenizer")
    loss = dit.losses(Zero(), tokenizer, batch, torch.device("cpu"))
    assert float(loss) < 10


def test_given_latents_are_seen_at_their_own_noise_level() -> None:
    """As a canvas that goes on shows them: the model is told the level, and they do not count."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Zero(torch.nn.Module):
        def forward(
            self, noisy: torch.Tensor, times: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
        ) -> torch.Tensor:
            seen.append((noisy, times))
            return torch.zeros_like(noisy)

    latents = torch.zeros(64, 4, 2, 8, 8)
    batch = dit.Batch(
        latents=latents, given=latents, mask=torch.tensor([[0.0, 1.0]]).repeat(64, 1),
        given_sigma=torch.full((64,), 0.25), prompts=["a red ball"] * 64,
    )  # fmt: skip
    dit.losses(Zero(), dit.Tokenizer.from_folder(TINY / "tokenizer"), batch, torch.device("cpu"))
    ((noisy, times),) = seen
    assert torch.equal(times[:, 0], times[:, 1].clamp_max(250.0))
    spread = noisy.flatten(3).std(3).mean(1)  # [B, T]: noise of level σ around nothing
    assert torch.allclose(1000 * spread, times, rtol=0.35, atol=1.0)


def test_a_decoder_meets_its_own_pictures_from_whole_latents_on() -> None:
    """Frames cut away leave a clip that the autoencoder takes, the same of both."""
    video = torch.arange(17.0).view(1, 1, 17, 1, 1).expand(1, 3, 17, 4, 4)
    starts = set()
    for seed in range(60):
        torch.manual_seed(seed)
        made, true = vae.from_a_frame(video + 0.5, video)
        assert torch.equal(made - 0.5, true) and true.shape[2] % 4 == 1
        starts.add(float(true[0, 0, 0, 0, 0]))
    assert 0.0 in starts and len(starts) > 5


def test_noise_levels_are_often_where_only_words_tell_what_there_is() -> None:
    """Above 0.97 a clip's layout cannot be seen: drawn rarely, left and right are not learned."""
    torch.manual_seed(0)
    for tokens in (4, 80, 1000):
        sigmas = dit.draw_sigmas(8000, tokens)
        assert sigmas.shape == (8000,) and sigmas.min() > 0 and sigmas.max() <= 1
        assert (sigmas > 0.97).float().mean() > 0.15
        assert (sigmas < 0.6).float().mean() > 0.08  # and details are still learned


def test_tokens_are_counted_by_the_log(tmp_path: Path) -> None:
    """What an aborted stretch was trained on and did not keep is not counted twice."""
    log = tmp_path / "log.jsonl"
    rows = [{"steps": n, "ktokens": k} for n, k in ((10, 2.0), (30, 4.0), (20, 3.0))]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert export.tokens_seen(log) == 1000 * (10 * 2 + 20 * 4)
