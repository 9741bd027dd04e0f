"""Random texts among which are near-duplicates."""

import random

LATIN, MIXED = "etaoinshrdlu   ", "etaoé漢字かな😀́ "


def texts_with_variants(count: int, length: int, letters: str, seed: int = 0) -> list[str]:
    """Texts of about `length` letters; every third is an earlier one with up to a sixth of it edited or none."""
    rng = random.Random(seed)
    texts: list[str] = []
    while len(texts) < count:
        if len(texts) % 29 == 28:
            texts.append(rng.choice(texts))
        if len(texts) % 3 < 2:
            texts.append("".join(rng.choices(letters, k=max(1, round(rng.gauss(length, length / 5))))))
            continue
        text = list(rng.choice(texts))
        for _ in range(rng.randint(0, len(text) // 6)):
            place = rng.randrange(len(text) + 1)
            text[place : place + rng.randint(0, 1)] = rng.choices(letters, k=rng.randint(0, 1))
        texts.append("".join(text))
    return texts
