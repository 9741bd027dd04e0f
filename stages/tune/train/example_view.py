"""One example as the model will see it: what the loss sees in colour, or between marks where there is none."""

import itertools

from rich.console import Console
from rich.text import Text

from stages.model.chat import Chat
from stages.tune.train.examples import IGNORED

_MASKED, _TRAINED = "dim", "bold green"
_OPEN, _CLOSE = "⟦", "⟧"


def show_example(chat: Chat, ids: list[int], labels: list[int], console: Console | None = None) -> None:
    """Print the decoded tokens, special ones included. `ids` and `labels` are of equal length."""
    console = console or Console(soft_wrap=True, highlight=False)
    colour = console.is_terminal and not console.no_color
    text = Text()
    for masked, run in itertools.groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] == IGNORED):
        words = chat.tokenizer.decode([token for token, _ in run], skip_special_tokens=False)
        if colour:
            text.append(words, style=_MASKED if masked else _TRAINED)
        else:
            text.append(words if masked else f"{_OPEN}{words}{_CLOSE}")
    how = "in green" if colour else f"between {_OPEN} and {_CLOSE}"
    console.print(Text(f"the first example; the loss sees what stands {how}:"))
    console.print(text)
