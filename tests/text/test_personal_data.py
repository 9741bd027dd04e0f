"""Masking: what is personal data, and above all what is not."""

import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.text.personal_data import TYPES, masker

# Put together here, so that no scanner takes this file for a leak.
GITHUB = "gh" + "p_" + "a1B2" * 9
STRIPE = "sk_" + "live_" + "4eC39HqLyjWDarjtT1zdp7dc"
SLACK = "xox" + "b-123456789012-abcdefABCDEF"
OPENAI = "sk-" + "proj-" + "a1B2c3D4" * 4
KEY = "-----BEGIN " + "PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----"


def mask(text: str, region: str = "US") -> str:
    return masker(TYPES[:6], region, "")(text)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("mail jane.doe+shop@mail.example.com.", "mail [EMAIL]."),
        ("<jörg@exämple.org>", "<[EMAIL]>"),
        ("a@example.com,b@example.com", "[EMAIL],[EMAIL]"),
        ("call (212) 555-0187 now", "call [PHONE] now"),
        ("+1 202-555-0143", "[PHONE]"),
        ("+44 20 7946 0958", "[PHONE]"),
        ("2125550187", "[PHONE]"),
        ("DE89 3704 0044 0532 0130 00 PLEASE", "[IBAN] PLEASE"),
        ("gb82west12345698765432", "[IBAN]"),
        ("FR14 2004 1010 0505 0001 3M02 606.", "[IBAN]."),
        ("card 4111 1111 1111 1111 123", "card [CARD] 123"),
        ("2 4111111111111111", "2 [CARD]"),
        ("4111\xa01111\u202f1111\u20071111", "[CARD]"),
        ("4111\u20111111\u20131111\u20101111", "[CARD]"),
        ("DE89\xa03704\xa00044\xa00532\xa00130\xa000", "[IBAN]"),
        ("5555-5555-5555-4444/378282246310005", "[CARD]/[CARD]"),
        ("from 192.0.2.44:8080.", "from [IP]:8080."),
        ("host 2001:db8::8a2e:370:7334!", "host [IP]!"),
        ("AKIAIOSFODNN7EXAMPLE", "[SECRET]"),
        (f"token={GITHUB}", "token=[SECRET]"),
        (f"{STRIPE} {SLACK} {OPENAI}", "[SECRET] [SECRET] [SECRET]"),
        (f"key:\n{KEY}", "key:\n[SECRET]"),
    ],
)
def test_personal_data_are_masked(text: str, masked: str) -> None:
    assert mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "order K-4821 and Z-1000",
        "orders K-4821, K-4822, K-4823, K-4824",
        "5 of 6 stars, 100 %, 3.14159265",
        "on 2024-09-17 at 12:30:45",
        "17.09.2024 or 09/17/2024",
        "€1,234,567.89",
        "4111 1111 1111 1112",  # the checksum fails
        "DE89 3704 0044 0532 0130 01",
        "the year 1999 2000 2001 2002",
        "999.999.999.999",
        "firmware version 2.0.1.5",
        "driver: 10.1.2.3",
        "1.2.3.4.5",
        "std::vector<int> a::b",
        "@support and user@localhost",
        "sk-learn-is-a-library-for-machine-learning",
        "timestamp 1726531200000",
        "section 1.2.3",
        "[EMAIL] [PHONE] [IBAN] [CARD] [IP] [SECRET]",
        "room 555-0100",
        "SHA ba7816bf8f01cfea414140de5dae2223b00361a3",
    ],
)
def test_what_is_no_personal_data_stays(text: str) -> None:
    assert mask(text) == text


def test_the_region_says_what_a_phone_number_is() -> None:
    assert mask("030 901820", "DE") == "[PHONE]"
    assert mask("030 901820", "US") == "030 901820"


ORDER = st.from_regex(r"[A-Z]-[0-9]{4}", fullmatch=True)


@given(ORDER, st.sampled_from(["order {}", "{}.", "({})", "{} and {}", "#{}"]))
def test_order_numbers_always_survive(order: str, frame: str) -> None:
    text = frame.replace("{}", order)
    assert mask(text) == text


@settings(max_examples=30, deadline=None)
@given(st.integers(min_value=0, max_value=10**14 - 1))
def test_a_card_is_masked_exactly_when_its_check_digit_fits(number: int) -> None:
    digits = f"4{number:014d}"
    total = sum(sum(divmod(int(d) * (2 - i % 2), 10)) for i, d in enumerate(digits))
    check = -total % 10
    assert mask(f"x {digits}{check} y") == "x [CARD] y"
    assert "[CARD]" not in mask(f"x {digits}{(check + 1) % 10} y")


def test_random_ibans_are_masked_and_their_neighbours_are_not() -> None:
    draw = random.Random(3)
    for _ in range(50):
        account = "".join(draw.choices(string.digits, k=18))
        check = 98 - int(f"{account}131400") % 97  # D = 13, E = 14: ISO 13616
        assert mask(f"to DE{check:02d}{account}.") == "to [IBAN]."
        wrong = check % 97 + 1
        assert "[IBAN]" not in mask(f"to DE{wrong:02d}{account}.")
