"""Plant dirt in support tickets, and note what was planted."""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

from support_ticket_writer import Json, Ticket, Writer, json_bytes

PERSONAL_DATA = {
    "email": ["jane.doe@example.com", "m.okafor+shop@example.org", "zoe@mail.example.net", "it-desk@example.com"],
    "phone": ["(212) 555-0187", "+1 202-555-0143", "415-555-0132", "+44 20 7946 0958"],
    "iban": [
        "DE89 3704 0044 0532 0130 00",
        "GB82WEST12345698765432",
        "FR14 2004 1010 0505 0001 3M02 606",
        "NL91 ABNA 0417 1643 00",
    ],
    "card": ["4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005", "6011 1111 1111 1117"],
    "ip": ["192.0.2.44", "198.51.100.7", "203.0.113.120", "192.0.2.201"],
}
PERSONAL_PHRASES = {
    "email": ["My address is {}.", "Write to {} please.", "Answer to {}.", "The account runs on {}."],
    "phone": ["Call me: {}.", "My number is {}.", "Ring {} after six.", "Phone {} if in doubt."],
    "iban": ["My bank account: {}.", "The IBAN is {}.", "Use account {}.", "IBAN {}, as before."],
    "card": ["I paid with card {}.", "The card was {}.", "Card number {}.", "Charged to {}."],
    "ip": ["Your log should show {}.", "I wrote from {}.", "My address on the net is {}.", "The router says {}."],
}
HTML = [
    "<p>{}</p>",
    "<div><b>{}</b></div>",
    '<span style="color:red">{}</span>',
    "<p>{}</p><!-- sent by webmail -->",
    "<font size=2>{}</font><br>",
    "{}<br/><img src='logo.png'>",
]


class Dirt:
    """Plants each kind of dirt in tickets that have none yet; new rows go to `added`."""

    def __init__(self, tickets: list[Ticket], writer: Writer) -> None:
        self.writer, self.draw = writer, writer.draw
        self.untouched = tickets[:]
        self.draw.shuffle(self.untouched)
        self.added: list[Ticket] = []

    def take(self, count: int, fits: Callable[[Ticket], bool] = lambda ticket: True) -> list[Ticket]:
        chosen = [ticket for ticket in self.untouched if fits(ticket)][:count]
        assert len(chosen) == count, "too few tickets left to dirty"
        self.untouched = [ticket for ticket in self.untouched if ticket not in chosen]
        return chosen

    def html(self) -> None:
        for number, ticket in enumerate(self.take(12)):
            ticket.prompt = HTML[number % len(HTML)].format(ticket.prompt)
            ticket.dirt = {"kind": "html"}

    def mojibake(self) -> None:
        for ticket in self.take(10, _survives_cp1252):
            ticket.prompt = ticket.prompt.encode("utf-8").decode("cp1252")
            ticket.dirt = {"kind": "mojibake"}

    def personal_data(self) -> None:
        for kind, values in PERSONAL_DATA.items():
            for ticket, value, phrase in zip(self.take(4), values, PERSONAL_PHRASES[kind], strict=True):
                prompt = ticket.prompt
                ticket.prompt = f"{prompt} {phrase.format(value)}"
                ticket.clean = f"{prompt} {phrase.format(f'[{kind.upper()}]')}"
                ticket.dirt = {"kind": "personal_data", "type": kind, "value": value}

    def exact_duplicates(self) -> None:
        """Twelve rows repeated: eight as they are, four that differ in bytes but not in meaning."""
        for number, twin in enumerate(self.take(12)):
            again = self._twin(twin, "exact_duplicate")
            if number in (8, 9):
                row = json.loads(twin.encoded())
                row["completion"] = json.dumps(twin.completion, separators=(",", ":"))
                again.line = json_bytes(row)
            elif number in (10, 11):
                again.prompt = f"{twin.prompt} \r\n" if number == 10 else twin.prompt.replace(" ", "\xa0", 1)

    def near_duplicates(self) -> None:
        """Twelve rows repeated with a typing error: two letters swapped, one lost or one doubled."""
        for number, twin in enumerate(self.take(12, lambda ticket: len(ticket.prompt) > 40)):
            again = self._twin(twin, "near_duplicate")
            again.prompt = again.clean = self._typo(twin.prompt, number)

    def near_but_different(self) -> None:
        """Ten prompts that nearly repeat another but mean another order or product: both must be kept."""
        fits = [
            lambda t: t.completion["order"] and len(t.prompt) > 60,
            lambda t: t.completion["product"] in _SWAPS and len(t.prompt) > 90,
        ]
        for key, fit in zip(("order", "product"), fits, strict=True):
            for twin in self.take(5, fit):
                again = self._twin(twin, "near_but_different")
                old = twin.completion[key]
                new = self.writer.order() if key == "order" else _SWAPS[old]
                again.prompt = again.clean = twin.prompt.replace(old, new)
                again.completion[key] = new

    def conflicts(self) -> None:
        """Four prompts repeated with another answer."""
        for twin in self.take(4):
            self._twin(twin, "conflict").completion["urgent"] = not twin.completion["urgent"]

    def malformed(self) -> None:
        for reason, spoil in MALFORMED:
            ticket = self.writer.ticket(self.draw.choice(list(self.writer.phrases["intents"])))
            row = json.loads(ticket.encoded())
            ticket.line = spoil(row)
            ticket.dirt = {"kind": "malformed", "reason": reason}
            self.added.append(ticket)

    def _twin(self, twin: Ticket, kind: str) -> Ticket:
        again = Ticket(
            twin.prompt, copy.deepcopy(twin.completion), twin.clean, twin.labelled, None, {"kind": kind}, twin
        )
        self.added.append(again)
        return again

    def _typo(self, text: str, number: int) -> str:
        places = [
            m.start() for m in re.finditer(r"(?<=[a-z])[a-z](?=[a-z])", text) if text[m.start()] != text[m.start() + 1]
        ]
        products = self.writer.phrases["products"]
        words = products["singular"] + products["plural"]
        spared = {i for word in words for m in re.finditer(word, text) for i in range(m.start() - 1, m.end())}
        at = self.draw.choice([place for place in places if place not in spared and place + 1 not in spared])
        swapped, lost, doubled = text[at + 1] + text[at], text[at + 1], text[at] * 2 + text[at + 1]
        return text[:at] + (swapped, lost, doubled)[number % 3] + text[at + 2 :]


_SWAPS = {
    "lamp": "laptop",
    "laptop": "lamp",
    "jacket": "backpack",
    "backpack": "jacket",
    "kettle": "keyboard",
    "keyboard": "kettle",
}


def _survives_cp1252(ticket: Ticket) -> bool:
    """Whether the prompt has a letter to garble, and every byte of it a meaning in Windows-1252."""
    try:
        return ticket.prompt.encode("utf-8").decode("cp1252") != ticket.prompt
    except UnicodeDecodeError:
        return False


def _without(row: Json, column: str) -> Json:
    return {key: value for key, value in row.items() if key != column}


def _completion(row: Json, **changes: Any) -> Json:
    return {**row, "completion": json.dumps({**json.loads(row["completion"]), **changes})}


MALFORMED: list[tuple[str, Callable[[Json], bytes]]] = [
    ("not_json", lambda row: json_bytes(row)[:-25]),
    ("not_json", lambda row: json_bytes(row)[:-1] + b', "prompt": "again"}'),
    ("missing_field", lambda row: json_bytes(_without(row, "completion"))),
    ("wrong_type", lambda row: json_bytes({**row, "completion": json.loads(row["completion"])})),
    ("not_utf8", lambda row: json_bytes({**row, "prompt": row["prompt"] + " caf~"}).replace(b"~", b"\xe9")),
    ("empty_completion", lambda row: json_bytes({**row, "completion": ""})),
    ("completion_not_json", lambda row: json_bytes({**row, "completion": row["completion"].replace('"', "'")})),
    ("breaks_schema", lambda row: json_bytes(_completion(row, intent="complaint"))),
    ("breaks_schema", lambda row: json_bytes(_completion(row, urgent="yes"))),
    ("breaks_schema", lambda row: json_bytes(_completion(row, customer="Ana"))),
    ("unknown_column", lambda row: json_bytes({"promt": row["prompt"], **_without(row, "prompt")})),
    ("unknown_column", lambda row: json_bytes({**row, "priority": 2})),
    ("blank_line", lambda row: b""),
]
