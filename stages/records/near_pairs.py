"""The near pairs of all prompts: `dedup` searches them once and writes them, and the stages after it read them."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from stages.core.errors import UserError
from stages.records.record import read_rows, write_rows

Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, slots=True)
class NearPairs:
    """For each prompt the prompts near it and their scores; a prompt is the SHA-256 of its normal form."""

    partners: dict[str, dict[str, float]]

    def among(self, texts: Sequence[str]) -> list[tuple[int, int, float]]:
        """The pairs of two of these distinct normalised prompts: their positions, left < right, and the score."""
        place = {digest(text): position for position, text in enumerate(texts)}
        return [
            (left, place[other], score)
            for name, left in place.items()
            for other, score in self.partners.get(name, {}).items()
            if place.get(other, -1) > left
        ]


def digest(text: str) -> str:
    """The name of a normalised prompt: `prompt_hash` of what it is the normal form of."""
    return sha256(text.encode()).hexdigest()


def write_near_pairs(path: Path, texts: Sequence[str], pairs: Iterable[tuple[int, int, float]], threshold: int) -> None:
    """Write pairs of positions in `texts` with their scores; the first line, which is always there, counts both."""
    names = [digest(text) for text in texts]
    rows = [{"left": names[left], "right": names[right], "score": score} for left, right, score in pairs]
    write_rows(path, [{"threshold": threshold, "prompts": len(texts), "pairs": len(rows)}, *rows])


def read_near_pairs(path: Path, threshold: int) -> NearPairs:
    """Read what `write_near_pairs` wrote.

    Raises:
        UserError: when it is missing, something else, or of another threshold.
    """
    partners: dict[str, dict[str, float]] = {}
    head, *rows = read_rows(path) if path.is_file() else ({},)
    if head.get("threshold") != threshold or head.get("pairs") != len(rows):
        raise UserError(f"{path} has not the near pairs at dedup.threshold {threshold}; make it with `dvc repro dedup`")
    for row in rows:
        for one, other in (("left", "right"), ("right", "left")):
            partners.setdefault(row[one], {})[row[other]] = row["score"]
    return NearPairs(partners)


def components(items: Iterable[Item], pairs: Iterable[tuple[Item, Item]]) -> list[list[Item]]:
    """The distinct items in groups that `pairs` connect, directly or through others, in the order of the items."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    place = {item: position for position, item in enumerate(items)}
    links = np.array([(place[left], place[right]) for left, right in pairs], dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(links), dtype=bool), (links[:, 0], links[:, 1])), shape=(len(place), len(place)))
    groups: dict[int, list[Item]] = {}
    for item, group in zip(
        place, connected_components(graph, directed=False)[1].tolist() if place else [], strict=True
    ):
        groups.setdefault(group, []).append(item)
    return list(groups.values())
