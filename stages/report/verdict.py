"""The verdict: may this model ship, why, and what to do next."""

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from stages.report.formats import plural
from stages.report.tables import BETTER, WORSE, Comparison, Measured, say_change
from stages.scoring.metrics import FAIL, MARGINAL, PASS, WORST_FIRST

_HEADLINE = {PASS: "Ready to release", MARGINAL: "Not proven yet", FAIL: "Do not release"}
_LEAKS = {
    "personal_data": "personal data",
    "verbatim": "training text word for word",
    "forbidden": "forbidden content",
}


class Step(NamedTuple):
    """Something to do: a sentence, and a command or a place on the page where there is one."""

    text: str
    command: str = ""
    section: str = ""


class Answer(NamedTuple):
    """A question that every reader has, its answer in a word or two, and what that rests on."""

    question: str
    word: str
    tone: str
    detail: str
    section: str


@dataclass(frozen=True)
class Verdict:
    """The verdict: a word, a headline, a sentence, the gates that it rests on, and what to do next."""

    state: str
    headline: str
    sentence: str
    gates: pd.DataFrame
    steps: list[Step]

    @property
    def open(self) -> pd.DataFrame:
        return self.gates[self.gates["State"] != PASS]

    @property
    def held(self) -> pd.DataFrame:
        return self.gates[self.gates["State"] == PASS]


def gate_table(judged: Mapping[str, Any]) -> pd.DataFrame:
    """All gates of metrics/gates.json by name, the worst first."""
    rows = [
        (name, gate["state"], _asked(gate), gate["reason"], gate["model"], gate["required"])
        for name, gate in judged["gates"].items()
    ]
    rows.sort(key=lambda row: (WORST_FIRST.index(row[1]), not row[5]))
    told = [(*row[:4], f"{row[4]}, {'required' if row[5] else 'advisory'}") for row in rows]
    return pd.DataFrame(told, columns=["Gate", "State", "Asked", "Measured", "On"], dtype=object).set_index("Gate")


def verdict(judged: Mapping[str, Any], confidence: float) -> Verdict:
    """The verdict of metrics/gates.json in words."""
    state, gates = judged["verdict"], judged["gates"]
    return Verdict(state, _HEADLINE[state], judged["reason"], gate_table(judged), _steps(state, gates, confidence))


def answers(metrics: Mapping[str, Any], found: Sequence[Measured]) -> list[Answer]:
    """Better than the base, the last release and the linear baseline, and safe to ship."""
    return [
        _better("Better than the base?", "base", found),
        _better("Better than the last release?", "previous", found),
        *([_better("Better than a linear model?", "linear", found)] if "linear" in found[0].scores else []),
        _safe(metrics["gates"], found[0].compared, metrics["evaluate"].get("safety", {})),
    ]


def rows_needed(value: float, threshold: float, confidence: float) -> int | None:
    """The fewest rows, to two digits, of which a share of `value` is shown to be beyond `threshold`, by the exact
    interval that its gate has; None beyond a hundred million.
    """
    sizes = (digits * 10**zeros for zeros in range(7) for digits in range(10, 100))
    return next((n for n in sizes if _chance(int(n * value + 1e-9), n, threshold) <= (1 - confidence) / 2), None)


def _chance(count: int, n: int, p: float) -> float:
    """Of `count` or more right answers of `n`, each right with chance `p`: scipy would take a second to import."""
    ways = math.lgamma(n + 1) - math.lgamma(count + 1) - math.lgamma(n - count + 1)
    total = term = math.exp(ways + count * math.log(p) + (n - count) * math.log1p(-p))
    for more in range(count, n):
        term *= (n - more) / (more + 1) * p / (1 - p)
        total += term
        if term < total * 1e-9:
            break
    return total


def _asked(gate: Mapping[str, Any]) -> str:
    limit = f"{'at least' if gate['kind'] == 'minimum' else 'at most'} {gate['threshold']:g}"
    of = "".join(f" of {kind} {name}" for kind, name in gate["of"].items())
    return limit + of + (f", change from {gate['against']}" if gate["against"] else "")


def _steps(state: str, gates: Mapping[str, Any], confidence: float) -> list[Step]:
    if state == PASS:
        return [
            Step("Commit the run, then tag it:", command="tunetrail release VERSION"),
            Step("Look at what changed first", section="examples"),
        ]
    if state == FAIL:
        return [
            Step("Check the red flags for a cause", section="flags"),
            Step("Look at what is wrong", section="examples"),
            Step("A release is refused until the required gates hold; to see them again:", command="tunetrail gates"),
        ]
    return [
        *_undecided(gates, confidence),
        Step("Or release with the doubt on record:", command="tunetrail release VERSION --accept-marginal REASON"),
    ]


def _undecided(gates: Mapping[str, Any], confidence: float) -> Iterator[Step]:
    """What would decide the gates on shares: a larger hold-out, if the share stays what it is, or a better model."""
    for name, gate in gates.items():
        share = gate["kind"] == "minimum" and 0 < gate["threshold"] < 1 and not gate["against"]
        if gate["state"] == MARGINAL and "low" in gate and share:
            above = gate["value"] > gate["threshold"]
            if above and (needed := rows_needed(gate["value"], gate["threshold"], confidence)):
                yield Step(f"A larger hold-out: at this quality, about {needed:,} rows would show {name}")
            else:
                where = "hardly above" if above else "not above"
                yield Step(f"A better model: {name} is {where} its threshold, which more rows alone would hardly mend")


def _better(question: str, before: str, found: Sequence[Measured]) -> Answer:
    """Yes only where every task is shown to be better; the tasks one by one where there are several."""
    pairs = [(part, one) for part in found for one in part.compared if (one.before, one.after) == (before, "adapter")]
    named = [(part, one.main) for part, one in pairs if one.main]
    changes = [(part, change) for part, change in named if part.task] or named
    if not changes:
        return Answer(question, "First release", "soft", "No earlier release was named to compare with.", "metrics")
    told = [
        f"{part.task}: {change.metric.name} {change.amount}, {change.reading}."
        if part.task
        else say_change(change, part.scores[before], part.scores["adapter"])
        for part, change in changes
    ]
    word, tone = _how_much({change.reading for _, change in changes})
    return Answer(question, word, tone, " ".join(told), "metrics")


def _how_much(readings: Set[str]) -> tuple[str, str]:
    if readings == {BETTER}:
        return "Yes", "good"
    if WORSE in readings:
        return ("Better and worse", "bad") if BETTER in readings else ("No, it is worse", "bad")
    return ("In part", "unsure") if BETTER in readings else ("Not shown", "soft")


def _safe(judged: Mapping[str, Any], compared: Sequence[Comparison], safety: Mapping[str, Any]) -> Answer:
    word, tone = {PASS: ("Yes", "good"), MARGINAL: ("Not proven", "unsure"), FAIL: ("No", "bad")}[judged["verdict"]]
    required = [gate["state"] for gate in judged["gates"].values() if gate["required"]]
    detail = f"{required.count(PASS)} of {plural(len(required), 'required gate')} {'hold' if required else 'are set'}."
    worse = [one.after for one in compared if one.before == "adapter" and one.main and one.main.reading == WORSE]
    if worse:
        detail += f" Worse than the adapter: {', '.join(worse)}."
    leaks = [f"{safety[key]['count']} with {name}" for key, name in _LEAKS.items() if safety.get(key, {}).get("count")]
    if leaks:
        detail += f" Among {safety['personal_data']['n']:,} answers {', '.join(leaks)}."
    return Answer("Safe to ship?", word, tone, detail, "gates")
