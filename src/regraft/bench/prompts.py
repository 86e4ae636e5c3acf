"""Prompts of a wanted length, no two of which begin alike."""

from __future__ import annotations

import random

from regraft.formats.text.tokenizer import Tokenizer

_TEXT = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work night point home water room mother area money story fact month lot
right study book eye job word business issue side kind head house service friend father power hour game line end member
law car city name team minute idea body back parent face level office door health person art war
"""
_WORDS = _TEXT.split()


def make_prompt(tokenizer: Tokenizer, length: int, seed: int) -> str:
    """Random words that are ``length`` tokens, or as few more as the last word has."""
    rng = random.Random(seed)
    text = rng.choice(_WORDS)
    while (missing := length - len(tokenizer.encode(text))) > 0:
        text += "".join(f" {rng.choice(_WORDS)}" for _ in range(max(1, missing // 8)))
    return text
