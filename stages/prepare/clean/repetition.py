"""How much of a text repeats itself, as texts of a model that got stuck do.

The share of words in 5-grams that occurred before, after the n-gram rules of Gopher (Rae et al. 2021,
arXiv:2112.11446, A.1.1), but over words instead of characters.
"""

_GRAM = 5
_FEWEST = 40  # units; in less, lists and forms repeat by nature
_LONGEST_WORD = 20  # characters on average, beyond which a text is not one of words (Chinese, or one held key)


def repeated_share(text: str) -> float:
    """The share of words, 0 to 1, that lie in a run of five that occurred earlier in the text.

    Of text without spaces characters count instead; a short text counts as 0.
    """
    units: list[str] = text.split()
    if len(text) > _LONGEST_WORD * len(units):
        units = list(text)
    if len(units) < _FEWEST:
        return 0.0
    seen: set[tuple[str, ...]] = set()
    repeated, end = 0, 0
    for start in range(len(units) - _GRAM + 1):
        gram = tuple(units[start : start + _GRAM])
        if gram in seen:
            repeated += start + _GRAM - max(start, end)
            end = start + _GRAM
        seen.add(gram)
    return repeated / len(units)
