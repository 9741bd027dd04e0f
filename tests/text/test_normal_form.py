import sys
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from stages.records.prompt import asked, compared
from stages.records.record import Message, make_record
from stages.text.normal_form import normalise, prompt_hash

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def test_case_accents_and_white_space() -> None:
    assert normalise("  STRASSE\t\n 5\u00a0") == normalise("straße 5") == "strasse 5"
    assert normalise("Cafe\u0301") == normalise("CAFÉ") == "café"
    assert normalise("cafe") != normalise("café")
    assert normalise("Really?") != normalise("Really")
    assert normalise("10 m²") != normalise("10 m2")


@given(st.text(st.characters(max_codepoint=127)))
def test_the_quick_way_of_ascii_is_the_long_one(text: str) -> None:
    folded = unicodedata.normalize("NFD", text).casefold()
    assert normalise(text) == " ".join(unicodedata.normalize("NFC", folded).split())


def test_canonically_equal_letters_whose_marks_fold_to_letters_are_the_same() -> None:
    # Alpha with iota below and acute, in two orders of composition: folding before decomposing would part them.
    assert normalise("\u1fb3\u0301") == normalise("\u03ac\u0345")


def test_normalising_twice_changes_nothing_for_any_character() -> None:
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)) not in ("Cn", "Co", "Cs"):
            once = normalise(chr(code))
            assert normalise(once) == once, hex(code)


@given(TEXT)
def test_canonically_equal_texts_are_one_prompt(text: str) -> None:
    assert normalise(unicodedata.normalize("NFD", text)) == normalise(unicodedata.normalize("NFC", text))
    assert prompt_hash(text.upper().lower()) == prompt_hash(normalise(text.upper().lower()))


def test_a_known_hash_does_not_change() -> None:
    # Locks in the history of a project hold such hashes: a change here needs a new NORMALISER_VERSION.
    assert prompt_hash("  Where is my ORDER?\r\n") == (
        "2b72e2ae144137defc45dc4c72c7b457bbb988a5792aa1a75220a9041be4dfcc"
    )


def test_earlier_turns_are_asked_too_and_a_system_message_is_not() -> None:
    system, talk = Message("system", "Be brief."), [Message("user", "Hi."), Message("assistant", "Yes?")]
    rows = [
        make_record("a", "x", None, "s", "f:1", context=context) for context in ([], [system], talk, [system, *talk])
    ]
    assert [asked(row) for row in rows] == ["a", "a", "Hi.\nYes?\na", "Hi.\nYes?\na"]
    assert [compared(row) for row in rows] == ["a", "a", "hi. yes? a", "hi. yes? a"]
