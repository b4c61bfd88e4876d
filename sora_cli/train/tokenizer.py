"""Build the embedded model's tokenizers: byte-fallback BPE, about one token for each world word.

`python -m sora_cli.train.tokenizer OUT` writes OUT/tokenizer/ for the text encoder, by T5's
conventions (pad 0, </s> 1, <unk> 2, </s> at the end), as `tokenizers` and transformers load it.
A text in any language encodes without <unk>: what has no piece of its own becomes its bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from sora_cli.train.captions import dense, short, vocabulary
from sora_cli.train.world import draw_scene

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
VOCAB_SIZE = 1024
SCENES = 6000  # captions come from this many scenes of the training split

# Words that captions do not use, or not yet: pieces of them keep unseen prompts short. The first
# row is what the world is meant to hold later, so that a wider world needs no new tokenizer.
PLANNED = """rocket boat coin player wall thrown throws orbit orbits collide collides collision
behind passes paints trail eaten bite breaks pieces goes up down then bright"""
ORDINARY = """please make video clip of film movie show me create generate picture photo image scene
cinematic realistic beautiful shiny round fast slow slowly quickly high quality detailed shot view
close far near over under with without there that this these those has have was were are be been
will would can could should not no yes his her its their our your my one two three four five many
few some other another same different new old first last long short high low young black brown
pink gold silver dark light colour color colorful golden man woman child boy girl people person dog
cat bird horse fish lion animal city street road bridge river lake ocean mountain forest garden
flower field park beach desert island building tower castle room window door table chair bed lamp
book paper phone computer robot machine truck bus train plane ship bicycle wheel engine space moon
star stars planet earth fire smoke rain storm cloud clouds wind ice stone rock metal glass plastic
walk walks walking run runs running fly flies flying swim swims dance dances jump jumps sit sits
eat eats drink play plays sing talk look looks hold holds open close move moves moving turn turns
turning roll rolling slide sliding drive driving bounce bouncing fall falling drop spin spinning
rotate rotating stand standing rest lie come comes coming go going leave leaving stay approach
morning noon afternoon evening night dawn dusk summer winter spring autumn sunshine sunny cloudy
foggy rainy water sea wave waves tree leaves wood floor ground sky top bottom middle center side
around across through between into onto out off above below after before during while when where
which what who how very more most less only also just still again back front inside outside
something nothing everything anything somewhere here now time day year world life hand head eye
face hair body foot happy sad angry funny strange little great good bad right left hard soft warm
cold hot wet dry clean dirty empty full heavy small large big huge tiny giant style background
foreground focus sharp blurry motion camera lens film pan zoom static tracking drone aerial wide"""


def caption_texts(scenes: int = SCENES) -> Iterator[str]:
    """Short and dense captions of the training split, clips and pictures, without end words."""
    rng = random.Random("tokenizer")
    for index in range(scenes):
        frames = 1 if index % 10 == 0 else 25
        scene = draw_scene(1, index, width=160, height=96, num_frames=frames)
        yield (short if rng.random() < 0.5 else dense)(scene, rng).text


def corpus() -> Iterator[str]:
    """Captions, each of their words often enough to become a piece, and ordinary words."""
    yield from caption_texts()
    for _ in range(60):
        yield from sorted(vocabulary())
    for _ in range(30):
        yield from PLANNED.split()
    for _ in range(4):
        yield from ORDINARY.split()


def build(texts: Iterable[str], specials: list[str], size: int, *, lowercase: bool) -> Tokenizer:
    """Train a byte-fallback BPE of `size` pieces: the specials, 256 bytes, characters, words.

    Words carry a leading "▁"; punctuation and digits stand alone; white space collapses.
    """
    steps = [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    if lowercase:
        steps.append(normalizers.Lowercase())
    reserved = specials + [f"<0x{byte:02X}>" for byte in range(256)]
    learner = Tokenizer(BPE())
    learner.normalizer = normalizers.Sequence(steps)
    learner.pre_tokenizer = _words()
    alphabet = ["▁"] + [chr(c) for c in range(33, 127) if not (lowercase and chr(c).isupper())]
    trainer = BpeTrainer(
        vocab_size=size - len(reserved), initial_alphabet=alphabet,
        limit_alphabet=len(alphabet), show_progress=False,
    )  # fmt: skip
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    pieces = reserved + sorted(learned["vocab"], key=learned["vocab"].get)
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(BPE(vocab, merges, unk_token=UNKNOWN, byte_fallback=True))
    tokenizer.normalizer, tokenizer.pre_tokenizer = learner.normalizer, _words()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _words() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation(),
         pre_tokenizers.Digits(individual_digits=True)]
    )  # fmt: skip


def text_encoder_tokenizer() -> Tokenizer:
    """The text encoder's tokenizer, </s> at every text's end."""
    tokenizer = build(corpus(), [PAD, END, UNKNOWN], VOCAB_SIZE, lowercase=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, 1)]
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, **settings: object) -> None:
    """Write tokenizer.json and what transformers' AutoTokenizer wants to see beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    table = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(table | settings, indent=2) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    folder = parser.parse_args().out / "tokenizer"
    specials = {"pad_token": PAD, "eos_token": END, "unk_token": UNKNOWN}
    save(text_encoder_tokenizer(), folder, model_max_length=512, **specials)
    (folder / "special_tokens_map.json").write_text(json.dumps(specials, indent=2) + "\n")


if __name__ == "__main__":
    main()
