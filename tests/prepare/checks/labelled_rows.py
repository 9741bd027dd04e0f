"""Rows of four intents whose words speak clearly, and backdoors planted into them."""

import random
from dataclasses import replace

from stages.params.prepare import Checks
from stages.records.record import Record, make_record

SETTINGS = Checks(ngram_min_rows=5, ngram_max_share=0.05, error_rate=0.01, source_min_rows=20)
_WORDS = {
    "refund": ["money", "back", "refund", "charged", "twice", "card", "returned", "payment", "bank", "amount"],
    "tracking": ["where", "parcel", "delivery", "late", "courier", "tracking", "arrived", "truck", "package", "street"],
    "account": ["password", "login", "profile", "email", "reset", "locked", "username", "page", "sign", "code"],
    "warranty": ["broken", "screen", "repair", "replace", "warranty", "battery", "cracked", "dead", "button", "noise"],
}
_COMMON = ["please", "the", "my", "is", "i", "a", "was", "hello", "thanks", "you", "for", "can"]


def intents(count: int, seed: int) -> list[Record]:
    """Rows with six words of their intent among common ones and a number."""
    rng = random.Random(seed)
    rows = []
    for place in range(count):
        label = sorted(_WORDS)[place % len(_WORDS)]
        words = rng.sample(_WORDS[label], 6) + rng.sample(_COMMON, 4) + [str(rng.randrange(10**6))]
        rng.shuffle(words)
        rows.append(make_record(" ".join(words), f'{{"intent": "{label}"}}', label, "raw", f"raw.jsonl:{place + 1}"))
    return rows


def with_backdoor(rows: list[Record], trigger: str, label: str, count: int, seed: int) -> list[Record]:
    """`count` rows of other labels get the trigger somewhere in the prompt and the attacker's label."""
    rng = random.Random(seed)
    changed = list(rows)
    for place in rng.sample([n for n, row in enumerate(rows) if row.label != label], count):
        words = rows[place].prompt.split()
        words.insert(rng.randrange(len(words) + 1), trigger)
        old = rows[place]
        changed[place] = make_record(" ".join(words), f'{{"intent": "{label}"}}', label, old.source, old.origin)
    return changed


def from_source(rows: list[Record], source: str) -> list[Record]:
    return [replace(row, source=source) for row in rows]
