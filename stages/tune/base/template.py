"""The chat template: the model's own, or a file of the repository in its place."""

import re
from pathlib import Path
from typing import Any

from stages.core.errors import UserError
from stages.model.chat import make_chat

_INSTRUCTION = "Answer."


def read_template(file: Path) -> str:
    """The text of the file; empty where it is white space and comments alone. Raises UserError when unreadable."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(
            f"model.chat_template: cannot read {file} ({reason}); name a file with a Jinja template, or one of a "
            "comment alone for the model's own"
        ) from None
    return text if re.sub(r"\{#.*?#\}", "", text, flags=re.DOTALL).strip() else ""


def set_template(tokenizer: Any, template: str) -> None:
    """Give the tokenizer the template, if there is one, and try whether it can be trained with what it then has.

    Saved with the tokenizer, it goes into every release, so that whoever loads one renders prompts the same way.

    Raises:
        UserError: as `make_chat` does.
    """
    if template:
        tokenizer.chat_template = template
    try:
        make_chat(tokenizer, _INSTRUCTION)
    except UserError as error:
        if template:
            raise UserError(f"model.chat_template: {error}") from None
        raise UserError(
            f"model.source: {error}; take an instruction-tuned model, or write a template and name its file in "
            "model.chat_template"
        ) from None
    if "strftime_now" in tokenizer.chat_template:
        print(
            "the chat template is changed: where it writes the date it now writes 26 July 2024, in each run and release"
        )
