"""drift: is what is asked this week still what was trained on?

A classifier is trained to tell the two apart; if it does better than chance on rows that it has not seen, they differ
(Lopez-Paz and Oquab 2017, "Revisiting classifier two-sample tests", arXiv:1610.06545). Here a ridge regression on
TF-IDF of words and pairs of words, by the area under its ROC curve over five folds; and by the area under the first
tenth of the curve, for a new kind of request in a few rows is found at its top and lost in the whole.

Chance is what comes out when the sides are dealt anew. For each permutation the whole cross-validation is fitted again,
which is exact; permuted under fixed scores it would not be, for a score depends on the sides of the rows in the other
folds. TF-IDF and folds do not look at the sides, so that one factorisation a fold serves all permutations.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.core import paths
from stages.core.errors import UserError
from stages.params.loader import Params
from stages.records.prompt import compared
from stages.scoring.rows import ALONE, score_row
from stages.text.json_schema import Tasks
from stages.text.personal_data import masker
from stages.weekly.append import label_of
from stages.weekly.collect import read_of_stage, record_of_request
from stages.weekly.logs import read_logs

_MOST, _FEWEST, _FOLDS = 1000, 20, 5
_PERMUTATIONS = 499
_LEVEL = 0.01  # chance of a false alarm, shared by the three tests (Bonferroni)
_WORD = r"\w+|[^\w\s]"  # a mark is a word, too: a prompt can have no other
_Z = 4.0  # standard errors from which a word has moved


def drift(logs: Sequence[Path], params: Params) -> dict[str, Any]:
    """What `tunetrail drift` shows; repeated prompts count once. Raises UserError for too few on either side."""
    mask = masker(params.clean.mask_personal_data, params.clean.phone_region, params.clean.ner_model)
    served, train = read_logs(logs)[0], read_of_stage(paths.SPLIT_TRAIN)
    requests = ((record_of_request(one, params.task, mask), one.output) for one in served)
    asked, tasks = {compared(record): (said, record.task) for record, said in requests}, Tasks(params.task)
    known = {compared(row): row for row in train}
    labels: list[Counter[Any]] = [
        Counter(row.label for row in known.values()),
        Counter(  # an answer that breaks its contract is no label, and may be anything
            score_row({**ALONE, "output": said, "task": tag}, tasks).valid
            and mask(label_of(said, params.task, tag) or "")
            for said, tag in asked.values()
        ),
    ]
    found = two_samples(list(known), list(asked), params.seed)
    names = sorted({label for side in labels for label in side if label})
    shares = {name: [round(side[name] / side.total(), 4) for side in labels] for name in names}
    return {"rows": [len(known), len(asked)], **found, "labels": shares}


def two_samples(
    then: Sequence[str], now: Sequence[str], seed: int, permutations: int = _PERMUTATIONS
) -> dict[str, Any]:
    """The three tests and what moved, of at most 1,000 rows of each side, drawn by the seed."""
    if min(len(then), len(now)) < _FEWEST:
        raise UserError(f"{len(then)} and {len(now)} different prompts; drift cannot be told from less than {_FEWEST}")
    from scipy.stats import ks_2samp

    draw = np.random.default_rng(seed)
    sides = [[side[i] for i in draw.permutation(len(side))[:_MOST]] for side in (then, now)]
    areas = _areas([*sides[0], *sides[1]], len(sides[1]), draw, permutations)  # whole and first tenth, 1 + permutations
    lengths = [[len(text) for text in side] for side in sides]
    tests: dict[str, dict[str, Any]] = {
        name: {
            "value": float(one[0]),
            "by_chance": [float(end) for end in np.quantile(one[1:], [0.025, 0.975])],
            "p": (1 + int((one[1:] >= one[0]).sum())) / (1 + permutations),
        }
        for name, one in zip(("area", "first_tenth"), areas, strict=True)
    }
    tests["length"] = {"median": [float(np.median(one)) for one in lengths], "p": float(ks_2samp(*lengths).pvalue)}
    alarm = min(one["p"] for one in tests.values()) <= _LEVEL / len(tests)
    return {"alarm": alarm, **tests, "words": _moved(*sides)}


def _areas(texts: Sequence[str], new: int, draw: np.random.Generator, permutations: int) -> Any:
    """Two areas under the curve for the last `new` texts against the others, then for each permutation of the sides."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.model_selection import KFold

    side = np.arange(len(texts)) >= len(texts) - new
    sides = np.column_stack([side, *(draw.permutation(side) for _ in range(permutations))]).astype(float)
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=_WORD).fit_transform(texts)
    alike, scores = (vectors @ vectors.T).toarray(), np.empty_like(sides)
    for fit, held in KFold(_FOLDS, shuffle=True, random_state=int(draw.integers(2**31))).split(texts):
        # Without the mean of the sides, which a held row would tell of its own side by its absence.
        model = KernelRidge(alpha=10.0, kernel="precomputed").fit(
            alike[np.ix_(fit, fit)], sides[fit] - sides[fit].mean(0)
        )
        scores[held] = model.predict(alike[np.ix_(held, fit)])
    ranked = np.take_along_axis(sides, np.argsort(-scores, axis=0, kind="stable"), axis=0)
    passed, found = np.cumsum(1 - ranked, axis=0), np.cumsum(ranked, axis=0)
    old = len(texts) - new
    # For the first rows of the old side, in the order of the scores, the mean share of the new side before each.
    return [(found * (1 - ranked) * (passed <= most)).sum(0) / (most * new) for most in (old, max(1, old // 10))]


def _moved(then: Sequence[str], now: Sequence[str]) -> list[dict[str, Any]]:
    """The words whose share of the prompts differs by more than chance explains, the most certain first, at most 12."""
    from sklearn.feature_extraction.text import CountVectorizer

    words = CountVectorizer(binary=True, token_pattern=_WORD).fit([*then, *now])
    shares = [np.asarray(words.transform(side).mean(0)).ravel() for side in (then, now)]
    whole = (shares[0] * len(then) + shares[1] * len(now)) / (len(then) + len(now))
    z = (shares[1] - shares[0]) / np.sqrt(np.maximum(whole * (1 - whole), 1e-12) * (1 / len(then) + 1 / len(now)))
    names = words.get_feature_names_out()
    order = [i for i in np.argsort(-abs(z), kind="stable")[:12] if abs(z[i]) > _Z]
    return [{"word": str(names[i]), "share": [round(float(side[i]), 4) for side in shares]} for i in order]


def as_text(found: dict[str, Any]) -> str:
    length, (then, now) = found["length"], found["rows"]
    lines = [f"{now} prompts of the logs against {then} that were trained on (at most {_MOST} of each)"]
    for name, words in (("area", "told apart"), ("first_tenth", "told apart at its top tenth")):
        (low, high), p = found[name]["by_chance"], found[name]["p"]
        lines.append(f"{words}: AUC {found[name]['value']:.3f}; {low:.3f} to {high:.3f} by chance, p = {p:.3g}")
    lines.append(f"length: median {length['median'][0]:g} -> {length['median'][1]:g} characters, p = {length['p']:.3g}")
    for what, moved in (("word", {one["word"]: one["share"] for one in found["words"]}), ("label", found["labels"])):
        lines += [f"  {what} {name}: {then:.1%} -> {now:.1%} of the prompts" for name, (then, now) in moved.items()]
    return "\n".join([*lines, f"alarm: the input has drifted, p <= {_LEVEL / 3:.2g}" if found["alarm"] else "no alarm"])
