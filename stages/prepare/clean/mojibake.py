"""Repair text whose UTF-8 bytes were once read in another encoding."""

from stages.text.fixpoint import settle


def fix_mojibake(text: str) -> str:
    """Undo wrong decodings with ftfy, its encoding steps alone: quotes, widths and ligatures stay as typed."""
    return text if text.isascii() else settle(_fix_once, text)


def _fix_once(text: str) -> str:
    import ftfy  # late: most texts are ASCII, and the import takes longer than the rest of the start

    # Lossy sequences are left alone: ftfy would put a replacement character where it has to guess.
    config = ftfy.TextFixerConfig(replace_lossy_sequences=False, explain=False)
    return str(ftfy.fix_encoding(text, config))
