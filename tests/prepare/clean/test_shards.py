"""The data stages on a Ray cluster: byte for byte what one machine writes, whatever dies and in whatever order."""

import contextlib
import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clean_project import CleanProject
from dvc.utils.serialize import dumps_yaml
from raw_formats import jsonl, parquet, separated, write_all
from ray_cluster import SEEDS, Finished, add_worker, here, left_behind, ray, running_cluster, set_workers, shuffled

from stages.core import cluster as on_ray
from stages.core import paths
from stages.core.yaml_reader import load_yaml
from stages.near_duplicates import pairs, ray_tiles
from stages.prepare.clean import shards
from stages.prepare.clean.__main__ import main as clean
from stages.prepare.dedup.__main__ import main as dedup
from stages.prepare.split.__main__ import main as split
from stages.prepare.split.draw import draw

ROOT = Path(__file__).parents[3]
SCHEMA = {"type": "object", "properties": {"intent": {"enum": ["refund", "tracking"]}}, "required": ["intent"]}
SMALL = {
    shards: {"_ROWS": 9, "_FEW": 0},
    ray_tiles: {"_SIDE": 30},
    pairs: {"_FEW": 0, "_FEW_NEAREST": 0, "_ROWS": 4, "_CANDIDATES": 30},
}
# The stage in a process that dies when three shards are finished.
KILLED = """
import os
from stages.core import cluster
from stages.prepare.clean import shards
from stages.prepare.clean.__main__ import main
shards._ROWS, shards._FEW = 9, 0
finish, finished = cluster._finish, []
def and_die(path, result):
    finish(path, result)
    finished.append(path)
    if len(finished) == 3:
        os.kill(os.getpid(), 9)
cluster._finish = and_die
main()
"""


def odd_rows(seed: int, count: int) -> list[dict[str, Any]]:
    """Rows of which some are near each other, some dirty and some broken."""
    draw_from = random.Random(seed)
    words = ["order", "lamp", "réfund", "漢字", "möchte", "K-4821", "where", "is", "my", "the", "please", "😀", "track"]
    rows = []
    for number in range(count):
        prompt = " ".join(draw_from.choices(words, k=draw_from.randint(3, 12))) + f" {number // 2}"
        prompt += draw_from.choice(
            ["", "", " <b>now</b>", " jane.doe@example.com", "\u00a0 ", " CafÃ©", " +1 202-555-0143"]
        )
        completion = json.dumps({"intent": draw_from.choice(["refund", "tracking"]), "n": number})
        rows.append({"prompt": prompt, "completion": completion, **draw_from.choice(ODD)})
    return rows


ODD: list[dict[str, Any]] = [
    *[{}] * 6,
    {"completion": "no JSON"},
    {"completion": '{"intent": "other"}'},
    {"prompt": ""},
    {"label": "tracking"},
    {"ünknown": 1},
]


def write_raw(raw: Path, seed: int) -> None:
    """An odd folder: every format, names with blanks and of other scripts, broken lines, files without a row."""
    draw_from = random.Random(seed)
    rows = odd_rows(seed, 60)
    lines = jsonl(rows).splitlines()
    broken = [b"", b"{", b'{"prompt": "\xff"}', b"[1]", b" " * 30, b'{"prompt": "a", "prompt": "b"}', b"x" * 5000]
    for line in broken:
        lines.insert(draw_from.randrange(len(lines)), line)
    (raw / "a ü b.jsonl").write_bytes(b"\n".join(lines))
    (raw / "leer.jsonl").write_bytes(b"")
    (raw / "漢字").mkdir()
    table = separated([{key: row.get(key, "") for key in ("prompt", "completion")} for row in odd_rows(seed + 1, 40)])
    cut = table.splitlines(keepends=True)
    cut.insert(draw_from.randrange(2, len(cut)), b'a "quote, that, is wrong\r\n')
    (raw / "漢字" / "rows 1.csv.gz").write_bytes(gzip.compress(b"".join(cut), mtime=0))
    # Bytes that are no UTF-8 and a time beyond Python's: what is read back of such a row is a stream of Arrow.
    text = pa.array([b"caf\xe9", b"where is K-1", b"and K-2"]).view(pa.string())
    time = pa.array([0, 1, 2**62]).view(pa.timestamp("us"))
    answers = pa.array(['{"intent": "refund"}'] * 3)
    odd = pa.table({"prompt": text, "completion": answers, "at": time})
    pq.write_table(odd, raw / "times.parquet", row_group_size=2)
    (raw / "rows.parquet").write_bytes(
        parquet([{"ünknown": None, "label": None, **row} for row in odd_rows(seed + 2, 20)])
    )
    write_all(raw / "formats", [{"prompt": f"Is {n} here?", "completion": '{"intent": "refund"}'} for n in range(12)])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with running_cluster() as made:
        yield made


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, values in SMALL.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)


@pytest.fixture
def tasks_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "_cluster", here(0))
    monkeypatch.setenv("TUNETRAIL_RAY", "no matter")


def project(folder: Path, seed: int, **changed: Any) -> CleanProject:
    settings = {"max_rejected_share": 0.9, "max_line_bytes": 4000, "keep_columns": ["at"], **changed}
    made = CleanProject(folder, SCHEMA, **settings)
    params = load_yaml((folder / "params.yaml").read_text(encoding="utf-8"))
    params["holdout"] |= {"share": 0.2}
    (folder / "params.yaml").write_text(dumps_yaml(params), encoding="utf-8")
    write_raw(made.raw, seed)
    return made


def written(folder: Path) -> dict[str, bytes]:
    """All that the stages wrote."""
    files = [path for place in ("data", "metrics") for path in (folder / place).rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in files if (folder / "data/raw") not in path.parents
    }


def stages(folder: Path) -> dict[str, bytes]:
    with contextlib.chdir(folder):
        clean()
        dedup()
        draw(redraw=False)
        split()
        assert left_behind() == []
    return written(folder)


@pytest.mark.usefixtures("small")
def test_shards_of_any_size_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for rows, size in ((1, 1 << 22), (9, 1 << 22), (10**9, 1), (10**9, 1 << 30)):
        monkeypatch.setattr(shards, "_ROWS", rows)
        monkeypatch.setattr(shards, "_BYTES", size)
        made = project(tmp_path / f"{rows}-{size}", 0)
        made.clean()
        found.append(written(made.folder))
    assert found[0] == found[1] == found[2] == found[3]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", SEEDS)
def test_workers_their_order_and_their_deaths_change_nothing(
    seed: int, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = stages(project(tmp_path / "one", seed).folder)
    rejected = (tmp_path / "one" / paths.REJECTED_CLEAN).read_text(encoding="utf-8")
    assert "raw_base64" in rejected
    assert "sha256" in rejected
    nearest = [json.loads(line) for line in expected[str(paths.NEAREST)].splitlines()]
    assert len({row["nearest_id"] for row in nearest}) > 3
    monkeypatch.setenv("TUNETRAIL_RAY", cluster.address)
    draw_from = random.Random(seed)

    def deaths(_: int) -> None:
        if draw_from.random() < 0.05:
            add_worker(cluster)
            cluster.remove_node(draw_from.choice([*cluster.worker_nodes]), allow_graceful=False)

    for workers, then in ((1, None), (2, None), (3, deaths)):
        set_workers(cluster, workers)
        with pytest.MonkeyPatch.context() as patch:
            shuffled(patch, seed)
            finished = Finished(patch, then or (lambda count: None))
            assert stages(project(tmp_path / str(workers), seed).folder) == expected
            assert len(finished.names) == len({*finished.names}) > 40


@pytest.mark.usefixtures("small")
def test_a_killed_driver_goes_on_and_what_is_left_of_other_rows_goes(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project(tmp_path / "killed", 5)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TUNETRAIL_RAY": cluster.address}
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=made.folder, env=environment, check=False)
    assert killed.returncode == -9
    assert not (made.folder / paths.CLEAN).exists()
    monkeypatch.chdir(made.folder)
    kept = {path.name for path in left_behind() if "tasks" in path.parts}
    assert len(kept) == 3
    stale = Path(".tunetrail/tasks/clean/stale")
    stale.write_bytes(b"of other rows")
    finished = Finished(monkeypatch)
    monkeypatch.setenv("TUNETRAIL_RAY", cluster.address)
    clean()
    assert not kept & {*finished.names}
    assert left_behind() == []
    monkeypatch.delenv("TUNETRAIL_RAY")
    alone = project(tmp_path / "alone", 5)
    alone.clean()
    assert written(made.folder) == written(alone.folder)


@pytest.mark.usefixtures("small", "tasks_here")
def test_other_rows_parameters_and_schemas_are_other_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed run left behind counts for the same alone."""
    names: list[set[str]] = []
    changes: list[dict[str, Any]] = [{}, {"strip_html": False}, {"max_line_bytes": 4001}, {}, {}]
    for number, changed in enumerate(changes):
        made = project(tmp_path / str(number), 5, **changed)
        if number == 3:
            (made.folder / "data/schema.json").write_text('{"type": "object"}', encoding="utf-8")
        if number == 4:
            (made.raw / "a ü b.jsonl").write_bytes(b'{"prompt": "Hello"}')
        with pytest.MonkeyPatch.context() as patch:
            finished = Finished(patch)
            made.clean()
            names.append({*finished.names})
    assert not names[0] & (names[1] | names[2] | names[3])
    assert names[0] & names[4] < names[0]


@pytest.mark.usefixtures("small")
def test_auto_without_a_cluster_takes_the_cores_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told that none runs, as Ray says it; in truth those of other tests may."""
    from ray._private import services

    def none_runs(*_: Any) -> str:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(services, "get_ray_address_from_environment", none_runs)
    monkeypatch.setenv("TUNETRAIL_RAY", "auto")
    made = project(tmp_path / "auto", 5)
    finished = Finished(monkeypatch)
    made.clean()
    assert finished.names
    assert not ray.is_initialized(), "it ends with the work"
    monkeypatch.delenv("TUNETRAIL_RAY")
    alone = project(tmp_path / "alone", 5)
    alone.clean()
    assert written(made.folder) == written(alone.folder)
