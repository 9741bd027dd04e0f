"""Write the sample task: support tickets to strict JSON, with planted dirt and the truth about it.

    python data/generate_support_tickets.py

rewrites `raw/support_tickets.jsonl`, `support_tickets_truth.json` and `schema.json` beside this file, byte for
byte; given a folder, it writes there. All tickets are invented; the personal data in them are the numbers and
addresses that standards set aside for examples.
"""

import json
import random
import sys
from pathlib import Path

from rapidfuzz import fuzz
from support_ticket_dirt import Dirt
from support_ticket_writer import NEAR, Json, Ticket, Writer

from stages.core.yaml_reader import load_yaml

SEED = 20240917


def schema(phrases: Json) -> Json:
    """The contract of a completion."""
    products = sorted(phrases["products"]["singular"] + phrases["products"]["plural"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Support ticket",
        "type": "object",
        "properties": {
            "intent": {"enum": [*phrases["intents"], "unreadable"]},
            "product": {"enum": [*products, None]},
            "order": {"type": ["string", "null"], "pattern": "^[A-Z]-[0-9]{4}$"},
            "urgent": {"type": "boolean"},
        },
        "required": ["intent", "product", "order", "urgent"],
        "additionalProperties": False,
    }


def truth(rows: list[Ticket]) -> Json:
    """Which lines (counted from 1) were dirtied, how, and what the clean stage should make of them."""
    lines = {row: number for number, row in enumerate(rows, start=1)}
    dirt = []
    for row in rows:
        if row.dirt:
            entry = {"line": lines[row], **row.dirt}
            if row.twin:
                entry["twin"] = lines[row.twin]
            if row.dirt["kind"] in ("html", "mojibake", "personal_data"):
                entry["clean"] = row.clean
            dirt.append(entry)
    return {"file": "support_tickets.jsonl", "rows": len(rows), "dirt": dirt}


def verify(rows: list[Ticket]) -> None:
    """The near-duplicates among the clean prompts are the planted ones and no others."""
    kept = [row for row in rows if row.dirt.get("kind") != "malformed"]
    found = {frozenset((a, b)) for i, a in enumerate(kept) for b in kept[:i] if fuzz.ratio(a.clean, b.clean) >= NEAR}
    planted = {frozenset((row, row.twin)) for row in kept if row.twin}
    assert found == planted, f"{len(found - planted)} near-duplicates by accident, {len(planted - found)} missing"


def generate(folder: Path) -> None:
    phrases = load_yaml(Path(__file__).with_name("support_ticket_phrases.yaml").read_text(encoding="utf-8"))
    draw = random.Random(SEED)
    writer = Writer(phrases, draw)
    tickets = writer.tickets()
    dirt = Dirt(tickets, writer)
    for plant in (
        dirt.html,
        dirt.mojibake,
        dirt.personal_data,
        dirt.exact_duplicates,
        dirt.near_duplicates,
        dirt.near_but_different,
        dirt.conflicts,
        dirt.malformed,
    ):
        plant()
    rows = tickets + dirt.added
    draw.shuffle(rows)
    verify(rows)
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    (folder / "raw" / "support_tickets.jsonl").write_bytes(b"".join(row.encoded() + b"\n" for row in rows))
    for name, value in (("support_tickets_truth.json", truth(rows)), ("schema.json", schema(phrases))):
        (folder / name).write_text(
            json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8", newline="\n"
        )


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
