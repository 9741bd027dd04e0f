"""Ask the judge what it was not asked before."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from stages.core import paths
from stages.measure.judge.questions import Question
from stages.measure.judge.replies import Memory, Reply, key
from stages.params import Judge


class Asked(Protocol):
    """A judge that can be asked; `identity` is all of it that decides a reply."""

    identity: Mapping[str, Any]

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Reply]]:
        """The replies, each as soon as it is there, in any order, and how long the rest will take."""
        ...


def hear(questions: Sequence[Question], judge: Judge, notes: dict[str, object]) -> dict[Question, Reply]:
    """The reply to every question, kept from an earlier run or asked for now; `notes` tells how many were asked.

    Raises:
        UserError: when the judge cannot be asked. Replies that came before are kept.
    """
    asked = _judge(judge)
    memory = Memory(paths.JUDGE_REPLIES)
    keys = {question: key(question, asked.identity) for question in questions}
    # Two models that say the same to a prompt make the same question, which is asked once.
    missing = list({keys[question]: question for question in questions if keys[question] not in memory.known}.values())
    kept = len(questions) - len(missing)
    notes |= {"replies_kept": kept, "replies_asked": len(missing)}
    print(f"asking {judge.model} {len(missing)} times; {kept} replies are known already", flush=True)
    for question, reply in asked.ask(missing):
        memory.add(keys[question], reply)
    return {question: memory.known[keys[question]] for question in questions}


def _judge(judge: Judge) -> Asked:
    if judge.provider == "local":
        from stages.measure.judge.judges import Local

        return Local(judge)
    from stages.measure.judge.judges import Endpoint

    return Endpoint(judge)
