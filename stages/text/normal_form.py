"""What makes two prompts the same: their normal form, and its hash."""

import hashlib
import unicodedata

# Raise this with every change of `normalise`: a hold-out lock keeps hashes of normalised prompts, and one that
# another version wrote would recognise nothing.
NORMALISER_VERSION = 1


def normalise(prompt: str) -> str:
    """The text by which prompts are compared.

    Case is folded (Unicode 3.13, canonical caseless matching, then NFC), every run of white space is one
    space, and none is left at the ends. Punctuation, accents and compatibility forms stay: they can change
    what is asked.
    """
    folded = unicodedata.normalize("NFD", prompt).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def prompt_hash(prompt: str) -> str:
    """SHA-256 of the normalised prompt, in hex."""
    return hashlib.sha256(normalise(prompt).encode()).hexdigest()
