"""One form for characters that look the same or cannot be seen."""

import re
import unicodedata

from stages.text.fixpoint import settle

_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_SPACES = re.compile("[\xa0\u2000-\u200a\u202f\u205f]")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
# Control characters, soft hyphen, zero-width space, word joiner, byte order mark, bidirectional overrides.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u2060-\u2064\ufeff\u202a-\u202e\u2066-\u2069\ufff9-\ufffb]"
)
# Most texts: one line of ASCII words.
_PLAIN = re.compile("[!-~]+(?: +[!-~]+)*")
# Joiners shape emoji and several scripts; beside ASCII or at an edge they do nothing.
_STRAY_JOINERS = re.compile("(?:(?<![^\x00-\x7f])[\u200c\u200d]+|[\u200c\u200d]+(?![^\x00-\x7f]))")


def normalise(text: str) -> str:
    """NFC, line feeds as line ends, plain spaces, nothing invisible, no space at line ends or around the text."""
    return text if _PLAIN.fullmatch(text) else settle(_normalise_once, text)


def _normalise_once(text: str) -> str:
    text = _LINE_ENDS.sub("\n", text)
    text = _SPACES.sub(" ", _STRAY_JOINERS.sub("", _INVISIBLE.sub("", text)))
    return _TRAILING.sub("", unicodedata.normalize("NFC", text)).strip(" \t\n")
