"""What can be known of a training run before it costs anything: tokenizer, template, data and layers, no weights."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_json
from stages.core.git import Repository
from stages.model.chat import Chat, task_chat
from stages.model.loading import load_tokenizer
from stages.params.model import Train
from stages.params.task import Task
from stages.tune.train.adapters import adapter_problems
from stages.tune.train.examples import Examples, optimiser_steps, show_example


def checked_chat(task: Task) -> Chat:
    """The base model's chat, of a template that can be trained with. Raises UserError when there is none."""
    if not paths.BASE.is_dir():
        raise UserError(f"{paths.BASE} is missing; run `dvc repro base augment` to make it")
    try:
        return task_chat(load_tokenizer(paths.BASE), task)
    except UserError as error:
        raise UserError(f"{paths.BASE}: {error}; model.chat_template can name another template") from None


def check(chat: Chat, settings: Train, train: Examples, validation: Examples, others: Sequence[str] = ()) -> None:
    """Print what the run will train on and show one example; `others` are problems found elsewhere.

    Raises UserError with a sentence for each problem.
    """
    print("\n".join(_facts(chat, settings, train, validation)), flush=True)
    if len(train):
        show_example(chat, train.input_ids[0], train.completion_mask[0])
    problems = [*_problems(chat, settings, train, validation), *others]
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise UserError(f"preflight found {count}:\n  " + "\n  ".join(problems))


def _facts(chat: Chat, settings: Train, train: Examples, validation: Examples) -> Iterator[str]:
    limit, tokens = settings.max_tokens, max(1, train.tokens)
    seen = train.trained_tokens / tokens
    yield f"{len(train)} rows to train on, {len(validation)} to validate on"
    yield (
        f"tokens: {train.tokens} to train on, of which the loss sees {train.trained_tokens} ({seen:.1%}); "
        f"{1 - seen:.1%} are masked"
    )
    for name, examples in (("training", train), ("validation", validation)):
        if examples.special:
            yield (
                f"{len(examples.special)} rows of {name} hold the text of a special token, which is encoded as plain "
                f"text, such as {', '.join(examples.special[:3])}"
            )
        lost, all_tokens = sum(examples.left_out), max(1, sum(examples.left_out) + examples.tokens)
        yield (
            f"left out of {name}, longer than {limit} tokens: {len(examples.left_out)} rows, "
            f"{lost} tokens ({lost / all_tokens:.1%})"
        )
    longest = max([*train.lengths, *train.left_out], default=0)
    yield f"longest row: {longest} tokens; stop token: {chat.tokenizer.decode([chat.stop_id])!r}"


def _problems(chat: Chat, settings: Train, train: Examples, validation: Examples) -> Iterator[str]:
    for name, examples in ((paths.TRAIN, train), (paths.VALIDATION, validation)):
        yield from _left_out(settings, name, examples)
        for fault, ids in examples.faults.items():
            yield f"{len(ids)} rows of {name} {fault}; take them out or change them, such as {', '.join(ids[:3])}"
    if len(train):
        yield from _double_bos(chat, train)
        steps = optimiser_steps(len(train), settings.batch_size, settings.epochs)
        yield from adapter_problems(paths.BASE, settings, steps)
    else:
        yield f"{paths.TRAIN} has no row to train on"
    if not len(validation) and settings.early_stopping_patience is not None:
        yield (
            f"train.early_stopping_patience needs rows in {paths.VALIDATION} and there are none; raise "
            "split.validation_share or set the patience to null"
        )
    config = read_json(paths.BASE / "config.json")
    positions = config.get("text_config", config).get("max_position_embeddings")
    if positions and settings.max_tokens > positions:
        yield (
            f"train.max_tokens = {settings.max_tokens}, but the model has {positions} positions; set it to {positions} "
            "or less"
        )
    repository = Repository(Path())
    with suppress(UserError):  # no git, or none that reads this repository
        if repository.git("rev-parse", "--git-dir") and not repository.resolve("HEAD"):
            # DVCLive writes curves beside the commit that they belong to.
            yield "the git repository has no commit yet, and DVCLive needs one; run `git add --all && git commit`"


def _left_out(settings: Train, name: Path, examples: Examples) -> Iterator[str]:
    share = len(examples.left_out) / max(1, len(examples.left_out) + len(examples))
    if share > settings.max_left_out_share:
        yield (
            f"{len(examples.left_out)} rows of {name} ({share:.1%}) exceed train.max_tokens = {settings.max_tokens} "
            f"and would be left out, where train.max_left_out_share allows {settings.max_left_out_share:.1%}; a "
            f"train.max_tokens of {max(examples.left_out)} would keep them all"
        )


def _double_bos(chat: Chat, train: Examples) -> Iterator[str]:
    bos = chat.tokenizer.bos_token_id
    doubled = sum(ids[:2] == [bos, bos] for ids in train.input_ids)
    if bos is not None and doubled:
        yield (
            f"{doubled} rows begin with the token {chat.tokenizer.decode([bos])!r} twice: the chat template of "
            f"{paths.BASE} writes it and something adds it again; models answer worse to a doubled one"
        )
