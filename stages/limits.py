"""`tunetrail preflight`: what would spoil a run, and limits that contradict each other, before any time is spent.

It reads more parameters than training does, so it is no part of that stage: none of them makes training stale.
"""

from collections.abc import Iterator, Sequence

from stages.core import paths
from stages.core.files import read_json
from stages.model.chat import Chat
from stages.params.loader import Params, load_params
from stages.records.record import Record, read_records
from stages.scoring.intervals import proportion_interval
from stages.tune.train.examples import make_examples, optimiser_steps
from stages.tune.train.preflight import check, checked_chat

_TOLERATED = 0.05  # share of the hold-out that no model could answer
_SHARES = ("exact_match", "label_accuracy", "json_valid", "schema_valid")


def main() -> None:
    """All checks, and one example with its loss mask. Raises UserError with a sentence for each problem."""
    params = load_params("gates", "generation", "scoring", "task", "train")
    chat = checked_chat(params.task)
    train = make_examples(chat, read_records(paths.TRAIN), params.train.max_tokens)
    held = read_records(paths.VALIDATION)
    validation = make_examples(chat, held, params.train.max_tokens)
    problems: list[str] = []
    if paths.HOLDOUT.is_file():
        held = read_records(paths.HOLDOUT)
        problems += unreachable_gates(params, len(held))
    problems += unanswerable(chat, held, params.generation.max_new_tokens)
    check(chat, params.train, train, validation, problems)
    steps = optimiser_steps(len(train), params.train.batch_size, params.train.epochs)
    if steps < params.train.evaluate_every:
        print(f"note: the run has {steps} steps, fewer than train.evaluate_every, and is never validated")
    print("preflight: nothing found that would spoil the run")


def unanswerable(chat: Chat, records: Sequence[Record], limit: int) -> Iterator[str]:
    """References that no model could say, since they or their prompts are too long; the stop token need not be said."""
    config = read_json(paths.BASE / "config.json")
    positions = config.get("text_config", config).get("max_position_embeddings")
    answers = [len(chat.completion_ids(record.completion)) - 1 for record in records]
    whole = [len(chat.prompt_ids(record)) + n for record, n in zip(records, answers, strict=True)]
    for lengths, most, what, mend in (
        (answers, limit, "reference answers are longer than generation.max_new_tokens", "set it to"),
        (whole, positions, "rows with their answers are longer than the positions of the base model", "it would take"),
    ):
        too_long = sum(length > most for length in lengths) if most else 0
        if too_long > _TOLERATED * len(records):
            yield f"{too_long} of {len(records)} {what} = {most}, so no model could answer them; {mend} {max(lengths)}"


def unreachable_gates(params: Params, rows: int) -> Iterator[str]:
    """Required gates that want more shown than so few rows can show, were all of them right."""
    for name, gate in params.gates.items():
        if gate.minimum is None or gate.against or gate.of or gate.evidence != "for" or gate.metric not in _SHARES:
            continue
        most = proportion_interval(rows, rows, params.scoring.confidence)[0] if rows else 0.0
        if gate.required and most < gate.minimum:
            yield (
                f"gates.{name} wants {gate.minimum:g} shown, and {rows} rows of {paths.HOLDOUT} show {most:.3f} when "
                "all are right; raise holdout.share or lower the minimum"
            )
