"""The text encoder's lessons: which words are said of which thing."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
import torch

from sora_cli.models.text_encoder import TextEncoder, TextEncoderConfig, Tokenizer
from sora_cli.train import binding, export
from sora_cli.train.captions import dense, short
from sora_cli.train.families import MIXTURES
from sora_cli.train.stories import attributes
from sora_cli.train.words import Caption
from sora_cli.train.world import Scene, draw_scene

TINY = Path(export.__file__).parents[1] / "assets" / "tiny"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(TINY / "tokenizer")


def two_things() -> Scene:
    """A scene whose first thing is a ball."""
    scenes = (
        draw_scene(0, i, width=160, height=96, num_frames=25, num_things=2) for i in range(99)
    )
    return next(s for s in scenes if s.things[0].kind == "ball")


def test_a_clause_is_a_thing_with_its_adjectives_and_what_it_does() -> None:
    scene = two_things()
    other = scene.things[1].kind
    text = (
        f"At night, a tiny red Ball bounces on the left, and a blue {other} falls. It is on wood."
    )
    found = [(c.number, text[c.start : c.end]) for c in binding.clauses(text, scene)]
    assert found == [(0, "tiny red Ball bounces on the left"), (1, f"blue {other} falls")]


def test_the_longer_noun_is_meant() -> None:
    """A striped ball is no ball, though its name has one in it."""
    scenes = (
        draw_scene(0, i, width=160, height=96, num_frames=25, mixture=MIXTURES["wide"])
        for i in range(3000)
    )
    both = {"ball", "striped ball"}
    scene = next(s for s in scenes if {thing.kind for thing in s.things} == both)
    kinds = [t.kind for t in scene.things]
    text = "a red striped ball hits a ball"
    numbers = [c.number for c in binding.clauses(text, scene)]
    assert [kinds[n] for n in numbers] == ["striped ball", "ball"]


def test_only_what_is_named_is_asked_for(tokenizer: Tokenizer) -> None:
    """At each token of a clause stand that thing's attributes, of those that the caption names."""
    scene = two_things()
    first, second = scene.things
    text = f"a {first.color} ball and a {second.kind}"
    named = frozenset({"count", "kind0", "kind1", "color0"})
    table = binding.targets(tokenizer, [(scene, Caption(text=text, named=named))], 20)
    heads = dict(zip(binding.VALUES, table[:, 0], strict=True))
    asked = {name: {int(v) for v in row if v != binding.NOTHING} for name, row in heads.items()}
    places, kinds = binding.VALUES["place"], binding.VALUES["kind"]
    assert asked["place"] == {places.index("1/2"), places.index("2/2")}
    assert asked["kind"] == {kinds.index("ball"), kinds.index(second.kind)}
    assert asked["color"] == {binding.VALUES["color"].index(first.color)}
    assert asked["size"] == asked["motion"] == set()
    assert heads["place"][0] == binding.NOTHING  # the article before the thing


def test_every_thing_of_every_plain_caption_is_found() -> None:
    rng = random.Random(0)
    for index in range(150):
        scene = draw_scene(1, index, width=160, height=96, num_frames=25)
        for write in (dense, short):
            text = write(scene, rng).text
            numbers = [c.number for c in binding.clauses(text, scene)]
            assert numbers == list(range(len(scene.things))), text


def drawn(family: str, count: int) -> list[Scene]:
    """Scenes of one family of the eventful mixture."""
    scenes = (
        draw_scene(0, i, width=160, height=96, num_frames=25, mixture=MIXTURES["eventful"])
        for i in range(9999)
    )
    return list(itertools.islice((s for s in scenes if s.family == family), count))


def test_steps_of_a_game_say_which_way_and_after_how_many() -> None:
    """Put one after the other, the parts of every game's caption are the game's actions."""
    rng = random.Random(0)
    for scene in drawn("game", 60):
        for write in (dense, short):
            caption = write(scene, rng)
            parts = [says for _, _, says in binding.told(scene, caption) if "way" in says]
            actions: list[str] = []
            for says in parts:
                assert int(says["steps before"]) == len(actions), caption.text
                actions += [says["way"]] * (int(says["steps after"]) - len(actions))
            assert tuple(actions) == scene.event.actions, caption.text


@pytest.mark.parametrize(
    ("family", "head", "name"),
    [("eaten", "number", "bites"), ("broken", "number", "pieces"), ("behind", "beside", "wall"),
     ("trail", "beside", "paint"), ("collision", "outcome", "outcome")],
)  # fmt: skip
def test_what_happens_is_read_where_it_is_named(family: str, head: str, name: str) -> None:
    """The number, colour or outcome of an event, of captions that say it and of no others."""
    rng, seen = random.Random(0), set()
    for scene in drawn(family, 30):
        for write in (dense, short):
            caption = write(scene, rng)
            values = {says.get(head) for _, _, says in binding.told(scene, caption)}
            said = name in caption.named
            assert values == ({attributes(scene)[name]} if said else {None}), caption.text
            seen.add(said)
    assert True in seen


def test_a_small_encoder_learns_whose_words_they_are(tokenizer: Tokenizer) -> None:
    """One page read again and again is read better; the encoder itself learns, not only heads."""
    torch.manual_seed(0)
    small = TextEncoderConfig(
        vocab_size=1024, hidden_size=32, num_layers=1, num_heads=2, head_dim=16, ffn_dim=64
    )
    encoder, reader = TextEncoder(small), binding.Reader(32)
    encoder.init_weights()
    page = binding.lesson(tokenizer, random.Random(0), 8, 64, torch.device("cpu"))
    optimizer = torch.optim.Adam([*encoder.parameters(), *reader.parameters()], lr=1e-2)
    seen = []
    for _ in range(40):
        loss = reader(encoder(page.ids, page.mask), page.wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < 0.5 * seen[0]
    bias = encoder.blocks[0].pos_embedding.embedding.weight
    assert bias.grad is not None and float(bias.grad.abs().sum()) > 0


def test_weights_say_what_they_began_from(tmp_path: Path) -> None:
    """Samples seen before `--start` are not lost from the provenance."""
    run = tmp_path / "transformer-run"
    run.mkdir()
    export.remember_start(TINY, run)
    known = json.loads((TINY / export.PROVENANCE).read_text())["runs"]["transformer"]
    assert json.loads((run / export.START).read_text()) == known and known["samples"] > 0
    export.remember_start(tmp_path, run)  # a folder that says nothing of itself
    assert json.loads((run / export.START).read_text()) == {}
