"""How the reading of prompts is measured: what counts, and the page it is written to."""

from __future__ import annotations

from pathlib import Path

import pytest

from sora_cli.eval import prompts as module
from sora_cli.eval.paraphrases import PARAPHRASES, SHOWN
from sora_cli.eval.prompts import COLORS_OF_TWO, HAND_WRITTEN, Figure, figure, page, pairs_of
from sora_cli.pipeline.expand import Expansion
from sora_cli.train.captions import attributes
from sora_cli.train.prompts import FORMS
from sora_cli.train.world import draw_scene

PAIR = "A small red ball bounces on the left and a large blue cube falls on the right. "
REST = "It is on the snow, by day. The camera stays still."


@pytest.mark.parametrize("form", ["mixed", *FORMS])
def test_true_captions_keep_everything(form: str) -> None:
    pairs = pairs_of(form, "development", 20)
    captions = {pair.prompt: pair.caption for pair in pairs}
    made = figure(form, pairs, lambda prompt, _: captions[prompt])
    assert (made.percent, made.whole, made.prompts) == (100.0, 20, 20)
    assert figure(form, pairs, lambda *_: PAIR + REST).percent < 80


def test_swapped_colours_are_seen() -> None:
    """The figure by which "never swapped" is judged."""
    pairs = [p for p in PARAPHRASES if p.prompt.startswith("two things")]
    only = ("kind0", "color0", "kind1", "color1")
    assert figure(COLORS_OF_TWO, pairs, lambda *_: PAIR + REST, only).percent == 100
    swapped = PAIR.replace("red", "x").replace("blue", "red").replace("x", "blue") + REST
    assert figure(COLORS_OF_TWO, pairs, lambda *_: swapped, only).percent == 50


def test_what_is_written_by_hand_names_real_attributes() -> None:
    scene = draw_scene(0, 0, width=160, height=96, num_frames=25, num_things=2)
    names = set(attributes(scene))
    assert len(SHOWN) == len(set(SHOWN)) == 55
    for pair in pairs_of(HAND_WRITTEN, "final", 3):
        assert pair.named and set(pair.named) <= names, pair


def test_the_page_escapes_what_people_type() -> None:
    row = Figure(form="plain", kept=99, named=100, whole=9, prompts=10)
    hostile = Expansion(
        prompt="a | <b> `c`\nd", expanded_prompt="x", source="none", notes=("no | n",)
    )
    asked = Expansion(prompt="a ball", expanded_prompt="A ball.", source="model")
    text = page([row], [row], [(hostile, 0.1), (asked, 0.25)], "Of a command.")
    assert "| plain | **99.0** | 100 | 90.0 | 10 | 99.0 |" in text
    assert "| a \\| &lt;b> 'c' d | (as it is) | no \\| n |" in text
    assert "| a ball | A ball. |  |" in text and "0.25 s in the median" in text


def test_errors_end_with_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert module.main(["--samples", "0"]) == 2
    assert "hint: --samples 200" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert module.main(["--folder", str(tmp_path), "--samples", "1"]) == 2
    assert "lexicon.json" in capsys.readouterr().err
