"""Draw support tickets from phrases."""

import json
import random
from dataclasses import dataclass, field
from typing import Any

from rapidfuzz import fuzz

NEAR = 90  # the threshold from which the pipeline calls two prompts near-duplicates
TICKETS_PER_INTENT = 128
URGENT_SHARE, CALM_SHARE = 0.35, 0.2
CURLY_SHARE = 0.25
UNLABELLED_SHARE = 0.04

Json = dict[str, Any]


@dataclass(eq=False)
class Ticket:
    """A row to be: what stands in the file, and what the truth file says of it."""

    prompt: str
    completion: Json
    clean: str  # the prompt as it should leave the clean stage
    labelled: bool = True
    line: bytes | None = None  # what stands in the file instead of the row
    dirt: Json = field(default_factory=dict)
    twin: "Ticket | None" = None

    def encoded(self) -> bytes:
        if self.line is not None:
            return self.line
        row: Json = {"prompt": self.prompt, "completion": json.dumps(self.completion, ensure_ascii=False)}
        if self.labelled:
            row["label"] = self.completion["intent"]
        return json_bytes(row)


def json_bytes(row: Json) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


class Writer:
    """Draws tickets from the phrases; refuses a prompt that nearly repeats an earlier one."""

    def __init__(self, phrases: Json, draw: random.Random) -> None:
        self.phrases = phrases
        self.draw = draw
        self.prompts: list[str] = []
        self.orders: set[str] = set()

    def tickets(self) -> list[Ticket]:
        return [self.ticket(intent) for _ in range(TICKETS_PER_INTENT) for intent in self.phrases["intents"]]

    def ticket(self, intent: str) -> Ticket:
        while True:
            prompt, completion = self._compose(intent)
            if all(fuzz.ratio(prompt, other) < NEAR - 2 for other in self.prompts):
                self.prompts.append(prompt)
                labelled = self.draw.random() >= UNLABELLED_SHARE
                return Ticket(prompt, completion, prompt, labelled)

    def order(self) -> str:
        while True:
            order = f"{self.draw.choice('ABCDEFGHJKLMNPQRSTUVWXYZ')}-{self.draw.randrange(1000, 10000)}"
            if order not in self.orders:
                self.orders.add(order)
                return order

    def _compose(self, intent: str) -> tuple[str, Json]:
        room, draw = self.phrases["intents"][intent], self.draw
        kinds = self.phrases["products"]
        product = draw.choice(kinds["singular"] + kinds["plural"]) if draw.random() < room["product"] else None
        order = self.order() if draw.random() < room["order"] else None
        urgent = draw.random() < URGENT_SHARE

        frames = room.get("with_product", room["frames"]) if product else room["frames"]
        frame = draw.choice([frame for frame in frames if order or "{order}" not in frame])
        plural = product in kinds["plural"]
        if product:
            thing = f"{draw.choice(room.get('determiners', self.phrases['determiners']))} {product}"
        else:
            thing = draw.choice(room.get("unnamed", self.phrases["unnamed"]))
        parts = [_agree(frame, thing, plural)]
        if order and "{order}" not in frame:
            parts.append(draw.choice(self.phrases["order_phrases"]))
        if draw.random() < 0.45:
            parts.insert(draw.choice([0, len(parts), len(parts)]), draw.choice(room["details"]))
        if urgent:
            parts.insert(draw.choice([0, len(parts), len(parts)]), draw.choice(self.phrases["urgent"]))
        elif draw.random() < CALM_SHARE:
            parts.append(draw.choice(self.phrases["calm"]))
        text = self._in_a_tone(parts)
        completion = {"intent": intent, "product": product, "order": order, "urgent": urgent}
        return text.replace("{order}", order or ""), completion

    def _in_a_tone(self, parts: list[str]) -> str:
        """Polite, plain or careless: openers and closers, or neither and no capitals."""
        draw = self.draw
        tone = draw.choices(["letter", "opened", "closed", "bare", "careless"], [3, 3, 3, 2, 2])[0]
        if tone in ("letter", "opened"):
            opener = draw.choice(self.phrases["openers"])
            if opener.endswith(",") and parts[0][1:2].islower() and draw.random() < 0.6:
                parts[0] = parts[0][0].lower() + parts[0][1:]
            parts = [opener, *parts]
        if tone in ("letter", "closed"):
            parts = [*parts, draw.choice(self.phrases["closers"]).replace("{name}", draw.choice(self.phrases["names"]))]
        text = " ".join(parts)
        if tone == "careless":
            text = text.lower().removesuffix(".").replace(". ", draw.choice([", ", " ", ". "]))
        if draw.random() < CURLY_SHARE:
            text = text.replace("'", "’")
        return text


_AGREEMENT = [
    ("{is}", "is", "are"),
    ("{Is}", "Is", "Are"),
    ("{was}", "was", "were"),
    ("{has}", "has", "have"),
    ("{does}", "does", "do"),
    ("{it}", "it", "them"),
    ("{they}", "it", "they"),
]


def _agree(frame: str, thing: str, plural: bool) -> str:
    """Fill in what is spoken of, and the words that agree with it."""
    for slot, one, many in _AGREEMENT:
        frame = frame.replace(slot, many if plural else one)
    return frame.replace("{thing}", thing).replace("{Thing}", thing[:1].upper() + thing[1:])
