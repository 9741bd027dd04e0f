"""What training and the hold-out have in common, for the metrics."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from stages.records.record import Record
from stages.text.normal_form import asked, normalise, prompt_hash

_N = 13
_WORD = re.compile(r"\w+")


def shared_rows(seen: Sequence[Record], holdout: Sequence[Record]) -> dict[str, int]:
    """Ids and prompts that are in both."""
    return {
        "shared_ids": len({row.id for row in seen} & {row.id for row in holdout}),
        "shared_prompts": len({prompt_hash(asked(row)) for row in seen} & {prompt_hash(asked(row)) for row in holdout}),
    }


def shared_runs(seen: Sequence[Record], holdout: Sequence[Record]) -> dict[str, dict[str, int]]:
    """How many hold-out rows have 13 words in a row that a seen row has, `of` those that have 13 words at all.

    Brown et al., "Language Models are Few-Shot Learners" (2020), appendix C, call an evaluation example contaminated
    when it shares 13 words in a row with the training text. Prompts and completions are looked at apart: templated
    completions share such runs by design. `runs` counts the distinct shared ones.
    """
    return {
        "prompt": _runs(seen, holdout, asked),
        "completion": _runs(seen, holdout, lambda row: row.completion),
    }


def _runs(seen: Iterable[Record], holdout: Iterable[Record], text: Callable[[Record], str]) -> dict[str, int]:
    held = [set(runs(text(row))) for row in holdout]
    known = set().union(*held)
    found = {run for row in seen for run in runs(text(row)) if run in known}
    return {"rows": sum(bool(one & found) for one in held), "of": sum(map(bool, held)), "runs": len(found)}


def runs(text: str) -> Iterator[tuple[str, ...]]:
    """Every 13 words in a row, case folded and without punctuation."""
    words = _WORD.findall(normalise(text))
    return (tuple(words[start : start + _N]) for start in range(len(words) - _N + 1))
