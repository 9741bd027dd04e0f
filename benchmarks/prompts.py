"""Seeded prompts with planted near-duplicates, for benchmarks: lengths and letters like those of instruction data.

Words are drawn as in English: a few function words everywhere, and for each prompt the vocabulary of one of 300 topics,
both by Zipf's law. That makes unrelated prompts harder to tell apart than English ones: at 200 characters the bags of
letters of two of them are 1.7 times as far apart as the bound for near-duplicates allows, in English prose 2.6 times.
"""

import random
import string
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

MEDIAN, SPREAD, SHORTEST, LONGEST = 200, 0.7, 20, 2000  # characters; log-normal
PLANTED = 0.1  # share of the prompts that are an edited copy of an earlier one
EDITS = 0.005, 0.045  # for each character of a copy
_TOPICS, _FUNCTION_WORDS, _TOPIC_WORDS, _FUNCTION_SHARE = 300, 120, 250, 0.55

# Onsets, vowels and codas of syllables, with weights near those of English letters.
_SOUNDS = (
    "t=9 n=7 s=6.5 h=6 r=6 d=4.3 l=4 c=2.8 m=2.4 w=2.4 f=2.2 g=2 y=2 p=1.9 b=1.5 v=1 k=0.8 th=5 st=2 pr=1.5 ch=1.2 "
    "tr=1.2 sh=1.2 br=0.8 gr=0.8 pl=0.7 cl=0.7 qu=0.3 j=0.3 z=0.2 x=0.2",
    "e=12.7 a=8.2 o=7.5 i=7 u=2.8 ea=1.5 ou=1.5 io=1.2 ai=0.8 ee=0.8",
    "=10 n=5 s=4 r=4 t=3 d=3 l=3 nd=1.5 ng=1.5 m=1 st=0.8 nt=0.8",
)


class Prompts(NamedTuple):
    """Distinct texts, and the pairs of positions of an original and its edited copy."""

    texts: list[str]
    planted: list[tuple[int, int]]


def make_prompts(count: int, seed: int = 17) -> Prompts:
    rng = random.Random(seed)
    words = _words(rng, 20_000)
    function, rest = words[:_FUNCTION_WORDS], words[_FUNCTION_WORDS:]
    topics = [rng.sample(rest, _TOPIC_WORDS) for _ in range(_TOPICS)]
    seen: set[str] = set()
    order: list[str] = []
    planted = []
    while len(order) < count:
        source = rng.randrange(len(order)) if order and rng.random() < PLANTED else None
        text = _fresh(rng, function, rng.choice(topics)) if source is None else _edited(rng, order[source])
        if text in seen:
            continue
        seen.add(text)
        if source is not None:
            planted.append((source, len(order)))
        order.append(text)
    return Prompts(order, planted)


def _words(rng: random.Random, count: int) -> list[str]:
    """Distinct words, the first and most frequent ones the shortest."""
    kinds = [dict(sound.split("=") for sound in sounds.split(" ")) for sounds in _SOUNDS]
    weighted = [(list(kind), [float(weight) for weight in kind.values()]) for kind in kinds]
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = 1 + min(4, int(rng.expovariate(1 / (0.2 + min(1.8, len(words) ** 0.25 / 6)))))
        sounds = [rng.choices(names, weights)[0] for _ in range(syllables) for names, weights in weighted]
        words["".join(sounds)] = None
    return list(words)


def _fresh(rng: random.Random, function: Sequence[str], topic: Sequence[str]) -> str:
    length = min(LONGEST, max(SHORTEST, round(rng.lognormvariate(0, SPREAD) * MEDIAN)))
    count = length // 4 + 2
    common = rng.choices(function, cum_weights=_zipf(len(function), 2.7), k=count)
    special = rng.choices(topic, cum_weights=_zipf(len(topic), 5), k=count)
    words = (a if rng.random() < _FUNCTION_SHARE else b for a, b in zip(common, special, strict=True))
    return " ".join(words)[:length]


def _zipf(count: int, shift: float) -> list[float]:
    return list(accumulate(1 / (rank + shift) for rank in range(count)))


def _edited(rng: random.Random, text: str) -> str:
    """One to few characters replaced, deleted or inserted."""
    letters = list(text)
    for _ in range(max(1, round(rng.uniform(*EDITS) * len(text)))):
        place = rng.randrange(len(letters))
        letters[place : place + rng.randint(0, 1)] = rng.choices(string.ascii_lowercase, k=rng.randint(0, 1))
    return "".join(letters)
