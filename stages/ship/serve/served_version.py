"""A release as its engine serves it: which file, what a request is told by default, and what it is known to answer."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.errors import Refusal, UserError
from stages.core.files import read_json
from stages.engines.engine_server import Messages, Server, held_to, reply, request
from stages.params.model import Generation
from stages.params.task import Task
from stages.records.record import Record, read_records, read_rows
from stages.scoring.rows import ALONE, score_row
from stages.text.json_schema import Tasks

LORA = "lora"


@dataclass(frozen=True)
class Version:
    """One format of a release, by its id.

    Attributes:
        folder: that holds manifest.json and a folder for each format.
        tree: where the repository's files of this release lie, such as its hold-out.
    """

    id: str
    folder: Path
    tree: Path
    form: str
    engine: str

    @cached_property
    def params(self) -> dict[str, Any]:
        return dict(read_json(self.folder / paths.MANIFEST.name)["params"])

    @cached_property
    def task(self) -> Task:
        task = Task.model_validate(self.params["task"])
        return task.model_copy(update={"schema_file": str(self.tree / task.schema_file)})

    @cached_property
    def tasks(self) -> Tasks:
        return Tasks(self.task)

    def defaults(self, server: Server, tag: str | None = None) -> dict[str, Any]:
        """What a request to the engine has besides its messages: every sampling parameter, and the contract."""
        settings = self.params["generation"]
        # Which contract holds is known where all rows have the same one, or the row says its tag.
        known = tag is not None or not self.task.tags
        held = held_to(settings.get("enforce", "none"), self.task, tag) if known else None
        body = request(server, [], Generation(max_new_tokens=settings["max_new_tokens"]), held)
        return {name: value for name, value in body.items() if name != "messages"}

    def outcome(self, body: Any) -> dict[str, Any]:
        """What a log holds of an answer, and nothing of its text: tokens, its end, the contract."""
        said = reply(body)
        valid = None if self.task.tags else score_row({**ALONE, "output": said.output}, self.tasks).valid
        return {"tokens": said.tokens, "stopped": said.stopped, "valid": valid}

    def messages(self, records: list[Record]) -> list[Messages]:
        """The conversations that the model was trained on for such records."""
        from stages.model.chat import task_chat
        from stages.model.loading import load_tokenizer

        chat = task_chat(load_tokenizer(self.folder / paths.MERGED.name), self.task)
        return [chat.messages(record) for record in records]

    def golden(self, count: int) -> list[tuple[Messages, str | None, str]]:
        """Of the first `count` rows of the hold-out: conversation, the row's tag, and the answer that was judged."""
        file = self.tree / paths.ARTEFACT_GENERATIONS / f"{self.form}.jsonl"
        said = {row["id"]: row["output"] for row in read_rows(file)}
        records = [record for record in read_records(self.tree / paths.HOLDOUT) if record.id in said][:count]
        asked = zip(self.messages(records), records, strict=True)
        return [(messages, record.task, said[record.id]) for messages, record in asked]


def version_of(release: str, folder: Path, tree: Path, engine: str | None, adapter: bool = False) -> Version:
    """The format for this engine; where none is named, GGUF by llama.cpp if it ships, else merged by its judge.

    As an `adapter` it is served beside others on its base, by llama.cpp where no engine is named. Raises UserError when
    the release has no file for the engine; Refusal when it was judged with answers held to a contract, and the engine's
    server holds them to none.
    """
    manifest = read_json(folder / paths.MANIFEST.name)
    forms = manifest["formats"]  # one that was not asked for has a folder, too
    judged = str(forms.get(paths.MERGED.name, {}).get("engine", "transformers"))
    engine = engine or ("llama.cpp" if "gguf" in forms or adapter else judged)
    form = LORA if adapter else "gguf" if engine == "llama.cpp" else paths.MERGED.name
    enforce = manifest["params"]["generation"].get("enforce", "none")
    if engine == "transformers" and enforce != "none":
        raise Refusal(
            f"{release} was judged with answers held to its {enforce} (generation.enforce), and `transformers serve` "
            "holds them to nothing; take --engine llama.cpp or vllm"
        )
    if form not in forms:
        raise UserError(f"{release} ships {', '.join(sorted(forms))}; {engine} wants {form} (quantize.formats)")
    return Version(release, folder, tree, form, engine)
