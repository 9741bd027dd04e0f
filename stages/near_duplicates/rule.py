"""When two prompts are near-duplicates, and when two rows are duplicates: two tests, the first of them in integers.

Two texts are near-duplicates when `rapidfuzz.fuzz.ratio(a, b) >= threshold`. With D their Indel distance (insertions
and deletions only) and L their summed length in code points, the ratio is 100 * (1 - D / L), so the rule is

    100 * D <= (100 - threshold) * L

without rounding. The join finds all pairs of this rule, and the split keeps each on one side.

Two rows are duplicates of each other, or contradict each other, when the model reads the same twice: their task and
their system message are the same, and their prompts are near-duplicates that ask the same. Where two near prompts
share a context, a whole line or a run of words of `CONTEXT` characters, the words that differ decide. The prompts ask
the same when those words are the same but for their spelling: one for one, each pair with the same first letter,
without digits, and alike at `SPELLING`. A word added or left out asks something else, as "not" does. Marks at the end
of a word do not count. In scripts without spaces each character is a word.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rapidfuzz.distance import Indel, Levenshtein

from stages.records.prompt import Question, lines
from stages.records.record import Record, grouped

CONTEXT = 40
SPELLING = 80

# Thai, Lao, Myanmar, Khmer, kana and the ideographs of Chinese and Japanese are written without spaces.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_MARKS = ".,;:!?…。、！？，"


class Pair(NamedTuple):
    """Two near texts by their positions, their Indel distance and their summed length in code points."""

    left: int
    right: int
    distance: int
    length: int

    @property
    def score(self) -> float:
        return score(self.distance, self.length)


def ratio(left: str, right: str) -> float:
    return score(Indel.distance(left, right), len(left) + len(right))


def score(distance: int, length: int) -> float:
    """The ratio from 0 to 100, rounded down to hundredths: 100 is for equal texts alone."""
    return (10_000 * (length - distance) // length) / 100 if length else 100.0


def is_near(left: str, right: str, threshold: int) -> bool:
    """Whether `fuzz.ratio(left, right) >= threshold`, without rounding."""
    return 100 * Indel.distance(left, right) <= (100 - threshold) * (len(left) + len(right))


def same_questions(
    questions: Mapping[Question, Sequence[Record]], near: Iterable[tuple[str, str, float]]
) -> list[tuple[Question, Question, float]]:
    """Of the near pairs of normalised prompts and their scores those of questions that the model reads as one."""
    near, found = list(near), []
    texts = {text for left, right, _ in near for text in (left, right)}
    of_text = grouped((one for one in questions if one.text in texts), lambda question: question.text)
    for left, right, score in near:
        for one in of_text[left]:
            for other in of_text[right]:
                if (one.task, one.system) == (other.task, other.system):
                    shared_line = bool(lines(questions[one]) & lines(questions[other]))
                    if ask_the_same(left, right, shared_line):
                        found.append((one, other, score))
    return found


def ask_the_same(left: str, right: str, shared_line: bool) -> bool:
    """Whether two near prompts in normal form ask the same; `shared_line` says that they have a line in common."""
    if not shared_line and min(len(left), len(right)) < CONTEXT:
        return True
    one, other = map(_words, sorted((left, right)))
    context, same = shared_line, True
    for step in Levenshtein.opcodes(one, other):
        here, there = one[step.src_start : step.src_end], other[step.dest_start : step.dest_end]
        if step.tag == "equal":
            context = context or len(" ".join(here)) >= CONTEXT
        else:
            same = same and step.tag == "replace" and all(map(_same_word, here, there))
    return same or not context


def _words(text: str) -> list[str]:
    return [word for found in _WORD.findall(text) if (word := found.strip(_MARKS))]


def _same_word(left: str, right: str) -> bool:
    digits = any(map(str.isdigit, left + right))
    return left[0] == right[0] and not digits and is_near(left, right, SPELLING)
