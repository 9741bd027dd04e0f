"""A judge of one's own: a transformers model in a folder of this machine."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.core.errors import UserError
from stages.core.files import tree_digest
from stages.measure.judge.questions import SYSTEM, Question
from stages.measure.judge.replies import Reply
from stages.model.answers import answer
from stages.model.chat import make_chat
from stages.model.loading import load_model, load_tokenizer
from stages.params import Generation, Judge
from stages.records.record import make_record

# As many replies are lost at most when a run is killed.
_AT_ONCE = 64


class Local:
    """The model is known by its content, so that another model in the same folder is asked anew."""

    def __init__(self, judge: Judge) -> None:
        self._folder = Path(judge.model)
        if not (self._folder / "config.json").is_file():
            raise UserError(f"judge.model: {judge.model} is no folder with a model (config.json is missing)")
        self._generation = Generation(max_new_tokens=judge.max_tokens)
        self.identity: Mapping[str, Any] = {
            "provider": "local",
            "model": tree_digest(self._folder),
            "max_tokens": judge.max_tokens,
        }

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Reply]]:
        """Greedy replies, a part of them at a time."""
        if not questions:
            return
        model = load_model(self._folder)
        chat = make_chat(load_tokenizer(self._folder), SYSTEM)
        for start in range(0, len(questions), _AT_ONCE):
            batch = questions[start : start + _AT_ONCE]
            records = [make_record(question.text, "", None, "judge", "") for question in batch]
            what = f"judge, {start + 1} to {start + len(batch)} of {len(questions)}"
            said = answer(model, chat, records, self._generation, what)
            for question, record, one in zip(batch, records, said, strict=True):
                yield question, Reply(one.output, len(chat.prompt_ids(record)), one.tokens)
