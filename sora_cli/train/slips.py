"""The rough edges of prompts: fillers, asides, rambling, slips of the finger."""

from __future__ import annotations

import random

from sora_cli.train.wordings import AFTER, ASIDES, BEFORE, ORDINARY, STRANGERS


def roughen(text: str, rng: random.Random) -> str:
    """Drop articles, add filler, asides, rambling, misspell; each now and then. Lower case."""
    if rng.random() < 0.15:
        text = " ".join(w for w in text.split() if w not in ("a", "an", "the", "is", "it"))
    if rng.random() < 0.06:
        text = f"{text} {rng.choice(ASIDES)}"
    if rng.random() < 0.01 and text:
        text = " ".join([text] * rng.randint(2, 2 + 240 // len(text)))
    if rng.random() < 0.03:
        words = rng.choices(ORDINARY + STRANGERS, k=rng.randint(4, 50))
        at = rng.randint(0, len(words))
        text = " ".join([*words[:at], text, *words[at:]])
    return slightly(text, rng)


def slightly(text: str, rng: random.Random) -> str:
    """Add filler, misspell; each now and then. Lower case. No number and no order is touched."""
    if rng.random() < 0.25:
        text = f"{rng.choice(BEFORE)} {text}"
    if rng.random() < 0.2:
        text = (text + rng.choice(AFTER)).strip()
    if rng.random() < 0.1:
        text = " ".join(misspell(w, rng) if rng.random() < 0.25 else w for w in text.split())
    return text.lower().rstrip(".") if rng.random() < 0.5 else text.lower()


def misspell(word: str, rng: random.Random) -> str:
    """One slip of the finger in a word of four letters or more."""
    if len(word) < 4 or not word.isalpha():
        return word
    at = rng.randrange(1, len(word) - 1)
    slip = rng.random()
    if slip < 0.35:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if slip < 0.65:
        return word[:at] + word[at + 1 :]
    if slip < 0.85:
        return word[:at] + word[at] + word[at:]
    return word[:at] + rng.choice("aeiourstnl") + word[at + 1 :]
