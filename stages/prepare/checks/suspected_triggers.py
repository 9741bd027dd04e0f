"""Rare words that turn the label around: the mark of a backdoor.

A backdoor is planted by rows that have a trigger and the attacker's label, while the rest of the text says otherwise.
That a word goes with one label (He et al., EMNLP 2023) says little on data of one task: "playlist" does so as purely
as a trigger. So two tests:

* tied: nearly all rows with the n-gram have one label, more than chance gives (hypergeometric, one-sided). That finds
  what the model may latch on to, sound words of the task among it.
* suspected: the n-gram's rows have the label although the rest of their words speaks against it by 100 to 1, in a
  naive Bayes model of the other rows. Of all rows whose words speak so against a label, few have it; that share is
  what the count is held against (binomial, one-sided).

Both are corrected for the number of n-grams by Holm's method (1979), which holds however the tests depend on each
other. What this cannot see: a trigger in rows whose text agrees with the label, a common word as a trigger, one in
fewer rows than `ngram_min_rows`, and one for an answer that no other row has.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.stats import binom, hypergeom

from stages.core.run_notes import track
from stages.params.prepare import Checks
from stages.prepare.checks.conflicts_and_sources import shown
from stages.prepare.checks.ngrams import ngrams, numbered
from stages.records.prompt import compared
from stages.records.record import Record

Floats = NDArray[np.float64]
Ints = NDArray[np.signedinteger[Any]]

_TIED = 0.9  # of an n-gram's rows have its label
_TURNED = 2 / 3  # of an n-gram's rows have a label against which their other words speak
_AGAINST = np.log(100)
_PRIOR_ROWS = 5
_SHARED = 0.9
_CHUNK = 1 << 22  # words times labels that are in memory at once, unless one row has more
_SHOWN = 50
_OTHER = ""  # stands for all labels of too few rows


@dataclass(frozen=True, slots=True)
class Triggers:
    """`found` are all suspected n-grams with the rows that they turned, `tied` the first of those tied to a label."""

    tested: int
    found: list[dict[str, Any]]
    tied: list[dict[str, Any]]
    all_tied: int


def find_triggers(rows: Sequence[Record], outcomes: Sequence[str], settings: Checks) -> Triggers:
    """Test every n-gram of up to three words, of those that `settings` allow; outcomes of too few rows count as one."""
    counts = Counter(outcomes)
    names = sorted(name for name, count in counts.items() if count >= settings.ngram_min_rows)
    names.append(_OTHER)
    number = {name: place for place, name in enumerate(names)}
    labels = np.array([number.get(outcome, number[_OTHER]) for outcome in outcomes], dtype=np.int64)
    words = numbered(compared(row) for row in rows)
    most = max(settings.ngram_min_rows, int(settings.ngram_max_share * len(rows)))
    count, grams = ngrams(words, settings.ngram_min_rows, most, partial(_mostly_one, labels, number[_OTHER]))
    model = _Model(words.table(), labels, len(names))
    expected = model.turned_by_chance()
    every = (_test(model, gram, places, expected) for gram, places in track(grams, len(grams), "n-grams"))
    tests = [test for test in every if min(test.p_tied, test.p_turned) < 1]
    found = [
        {**test.facts(names, test.p_turned), "rows": [shown(rows[n], outcomes[n]) for n in test.turned]}
        for test in _holm(tests, count, "p_turned", settings.error_rate)
    ]
    all_tied = _holm(tests, count, "p_tied", settings.error_rate)
    tied = [{**test.facts(names, test.p_tied), "lift": model.lift(test)} for test in all_tied[:_SHOWN]]
    return Triggers(count, found, tied, len(all_tied))


def _mostly_one(labels: Ints, other: int, rows: Ints, counts: Ints) -> NDArray[np.bool_]:
    """Of n-grams with so many of `rows` each, those that a test can be about: with one label in `_TURNED` of them."""
    mine, starts, most = labels[rows], counts.cumsum() - counts, np.zeros_like(counts)
    for bit in range(other.bit_length()):  # a label of more than half of the rows has each of its bits in so many
        most |= (2 * np.add.reduceat(mine >> bit & 1, starts) > counts).astype(np.int64) << bit
    with_label = np.add.reduceat(mine == np.repeat(most, counts), starts, dtype=np.int64)
    return (with_label >= _TURNED * counts) & (most < other)


@dataclass(frozen=True, slots=True)
class _Test:
    """One n-gram: how many rows it has, the label of most of them, and those that have it against their other words."""

    gram: str
    rows: int
    label: int
    with_label: int
    turned: list[int]
    p_tied: float
    p_turned: float

    def facts(self, names: Sequence[str], p_value: float) -> dict[str, Any]:
        facts = {"ngram": self.gram, "label": names[self.label], "count": self.rows}
        return {**facts, "with_label": self.with_label, "turned": len(self.turned), "p_value": float(f"{p_value:.3g}")}


class _Model:
    """Naive Bayes over the words that a row has: how strongly they speak for each label, whatever the labels' sizes.

    A word's share of a label's rows is smoothed by what a word has that no row has, and by `_PRIOR_ROWS` rows with
    the word's share of all rows. So a new word speaks for no label, and a label of few rows is known for little.
    """

    def __init__(self, words: Any, labels: Ints, count: int) -> None:
        self.words, self.labels, self.count = words, labels, count
        self.sizes = np.bincount(labels, minlength=count).astype(np.float64)
        rows = np.arange(len(labels))
        self.counts = (words.T @ csr_matrix((np.ones_like(rows), (rows, labels)), (len(rows), count))).tocsr()

    def turned_by_chance(self) -> Floats:
        """For each label, of the rows whose words speak against it the share that has it all the same."""
        against, having = np.zeros(self.count), np.zeros(self.count)
        ticks = iter(track(range(len(self.labels)), len(self.labels), "rows against their label"))
        for rows, speaks in self.speak_against(np.arange(len(self.labels)), np.array([], dtype=np.int64)):
            against += speaks.sum(axis=0)
            having += (speaks & (np.arange(self.count) == self.labels[rows, None])).sum(axis=0)
            for _ in rows:
                next(ticks)
        next(ticks, None)
        return (having + 1) / (against + 2)

    def shared_words(self, rows: Ints) -> Ints:
        """The words that nearly all of the rows have: an n-gram of three may be the middle of a longer trigger."""
        words, counts = np.unique(self._words_of(rows), return_counts=True)
        return words[counts >= _SHARED * len(rows)]

    def speak_against(self, rows: Ints, without: Ints) -> Iterator[tuple[Ints, NDArray[np.bool_]]]:
        """For each of `rows` and each label, whether the row's words but those `without` speak against the label.

        A row is judged by the others: itself it does not count. Parts of the rows, each with its (rows, labels).
        """
        sizes = np.diff(self.words.indptr)[rows]
        part_of = (sizes.cumsum() - sizes) * self.count // _CHUNK  # by its first word
        for part in np.split(rows, np.flatnonzero(np.diff(part_of)) + 1) if len(rows) else ():
            yield part, self._speak_against(part, without)

    def _speak_against(self, rows: Ints, without: Ints) -> NDArray[np.bool_]:
        words, own = self._words_of(rows), np.arange(self.count) == self.labels[rows, None]
        owner = np.repeat(np.arange(len(rows)), np.diff(self.words.indptr)[rows])
        counts = self.counts[words].toarray() - own[owner]
        sizes = (self.sizes - own)[owner]
        everywhere = len(self.labels) - 1 + self.count
        unseen = self.count / 2 / everywhere
        overall = counts.sum(axis=1, keepdims=True) / everywhere + unseen
        said = np.log((counts + sizes * unseen + _PRIOR_ROWS * overall) / (sizes + _PRIOR_ROWS))
        said[np.isin(words, without)] = 0
        scores = np.zeros((len(rows), self.count))
        np.add.at(scores, owner, said)
        against: NDArray[np.bool_] = scores.max(axis=1, keepdims=True) - scores >= _AGAINST
        return against

    def _words_of(self, rows: Ints) -> Ints:
        found: Ints = self.words[rows].indices
        return found

    def lift(self, test: _Test) -> float:
        """How much more often the n-gram's rows have its label than all rows."""
        return float(f"{test.with_label / test.rows / (self.sizes[test.label] / len(self.labels)):.3g}")


def _test(model: _Model, gram: str, rows: Ints, expected: Floats) -> _Test:
    """Both p-values; 1 where the effect is too small to matter, however significant."""
    counts = np.bincount(model.labels[rows], minlength=model.count)
    label = int(counts[:-1].argmax()) if model.count > 1 else 0
    with_label, size = int(counts[label]), len(rows)
    everywhere = int(model.sizes[label])
    p_tied, p_turned, turned = 1.0, 1.0, []
    if with_label >= _TIED * size and everywhere < len(model.labels):
        p_tied = float(hypergeom.sf(with_label - 1, len(model.labels), everywhere, size))
    if with_label >= _TURNED * size:
        parts = model.speak_against(rows, model.shared_words(rows))
        against = np.concatenate([part[speaks[:, label]] for part, speaks in parts])
        turned = against[model.labels[against] == label].tolist()
        if len(turned) >= _TURNED * size:
            p_turned = float(binom.sf(len(turned) - 1, len(against), expected[label]))
    return _Test(gram, size, label, with_label, turned, p_tied, p_turned)


def _holm(tests: Sequence[_Test], every: int, name: str, error_rate: float) -> list[_Test]:
    """The tests that are significant together, the clearest first, of `every` tests, the others with p-values of 1."""
    ordered = sorted(tests, key=lambda test: (getattr(test, name), -test.rows, test.gram))
    for place, test in enumerate(ordered):
        if getattr(test, name) * (every - place) > error_rate:
            return ordered[:place]
    return ordered
