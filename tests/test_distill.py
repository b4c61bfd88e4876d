"""Few-step distillation: the teacher's walk is the sampler's, the LoRA is what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sora_cli.models.dit import DiT, DiTConfig
from sora_cli.pipeline.sampler import make_schedule, sigma_grid
from sora_cli.train import distill
from sora_cli.weights.lora import merge
from sora_cli.weights.lora_arguments import Lora

CONFIG = DiTConfig(
    num_layers=2, hidden_size=32, num_heads=2, ffn_dim=64, in_channels=4, out_channels=4,
    text_dim=16, text_len=6, patch_size=(1, 1, 1),
)  # fmt: skip


@pytest.fixture
def dit() -> DiT:
    torch.manual_seed(0)
    model = DiT(CONFIG)
    model.init_weights()
    for parameter in model.parameters():  # heads begin at zero
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def drawn(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, a mask whose first latent is given, texts without and with words."""
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(batch, 4, 3, 2, 2, generator=generator)
    mask = torch.ones(batch, 3)
    mask[0, 0] = 0
    return noisy, mask, torch.randn(2 * batch, 6, 16, generator=generator)


def test_the_few_steps_lie_on_the_many_steps_grid() -> None:
    """So a LoRA needs no noise levels of its own: `--steps 4` has them."""
    for steps in (1, 2, 4):
        rows = distill.stretches(steps, 3.0)
        assert rows.shape == (steps, distill.INNER + 1)
        assert torch.equal(rows[:-1, -1], rows[1:, 0])
        few = torch.tensor(sigma_grid(steps, 3.0))
        assert torch.allclose(torch.cat((rows[:, 0], rows[-1:, -1])), few)


def test_the_teacher_walks_as_the_sampler_does(dit: DiT) -> None:
    """Guided Euler steps over the default grid, written out with the pipeline's own levels."""
    noisy, mask, contexts = drawn()
    schedule = make_schedule(8, 3.0, sampler="euler")
    levels = torch.tensor(schedule.sigmas).repeat(2, 1)
    ours = distill.walked(dit, noisy, mask, contexts, levels, 4.0)
    with torch.no_grad():
        theirs = noisy.clone()
        for level, following in zip(schedule.sigmas, schedule.sigmas[1:], strict=False):
            plain, told = (dit(theirs, 1000 * level * mask, c) for c in contexts.chunk(2))
            velocity = plain + 4.0 * (told - plain)
            theirs += (following - level) * velocity * mask[:, None, :, None, None]
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.equal(ours[0, :, 0], noisy[0, :, 0]), "what is given stays"


def test_the_file_is_what_was_trained(dit: DiT, tmp_path: Path) -> None:
    """Merged by the loader, the LoRA gives the student's velocities; off, the teacher's."""
    noisy, mask, contexts = drawn()
    times, texts = 500.0 * mask, contexts[2:]
    original = {name: tensor.clone() for name, tensor in dit.state_dict().items()}
    with torch.no_grad():
        before = dit(noisy, times, texts)
        changes = distill.Changes(dit, rank=4)
        for row in changes.rows:
            row.up.data.normal_(std=0.05)
        student = dit(noisy, times, texts)
        with changes.off():
            assert torch.equal(dit(noisy, times, texts), before)
    assert not torch.allclose(student, before, atol=1e-3)
    save_file(changes.saved(changes.state_dict()), tmp_path / "quick.safetensors")
    report = merge(original, [Lora(path=tmp_path / "quick.safetensors")])
    assert report.matched == len(changes.names) and not report.notes
    merged = DiT(CONFIG)
    merged.load_state_dict(original)
    with torch.no_grad():
        found = merged.eval()(noisy, times, texts)
    assert torch.allclose(found, student, atol=2e-3 * float(student.abs().max()))


def test_only_the_changes_learn_and_they_do(dit: DiT) -> None:
    changes = distill.Changes(dit, rank=8)
    noisy, mask, contexts = drawn()
    levels = distill.stretches(2, 3.0)[torch.tensor([0, 1])].float()
    weights = {name: p.clone() for name, p in dit.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(changes.parameters(), lr=1e-2, weight_decay=0.0)
    seen = []
    for _ in range(25):
        loss = distill.loss_of(dit, changes, noisy, mask, contexts, levels, 2.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < 0.5 * seen[0]
    for name, parameter in dit.named_parameters():
        if name in weights:
            assert parameter.grad is None and torch.equal(parameter, weights[name])
