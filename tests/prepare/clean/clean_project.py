"""A folder in which the clean stage can run: parameters, a schema, raw files."""

import base64
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dvc.utils.serialize import dumps_yaml

from stages.core import paths
from stages.core.yaml_reader import load_yaml
from stages.prepare.clean.__main__ import main
from stages.prepare.clean.rejected_rows import Row
from stages.prepare.clean.sources import RawFile, parsed, read_unparsed
from stages.records.record import Record, read_records

ROOT = Path(__file__).parents[3]
GOOD = b'{"prompt": "Where is K-4821?", "completion": "{\\"intent\\": \\"tracking\\"}"}'
ANY_OBJECT = {"type": "object"}


class CleanProject:
    """Has the project's params.yaml with `clean` changed as given, a schema, and raw files by name."""

    def __init__(self, folder: Path, schema: Any = ANY_OBJECT, **clean: Any) -> None:
        self.folder = folder
        self.raw = folder / "data" / "raw"
        self.raw.mkdir(parents=True)
        params = load_yaml((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["clean"].update(clean)
        (folder / "params.yaml").write_text(dumps_yaml(params), encoding="utf-8")
        (folder / "data" / "schema.json").write_text(json.dumps(schema), encoding="utf-8")

    @classmethod
    def of_the_sample(cls, folder: Path) -> "CleanProject":
        project = cls(folder, json.loads((ROOT / "data" / "schema.json").read_text(encoding="utf-8")))
        shutil.copy(ROOT / "data" / "raw" / "support_tickets.jsonl", project.raw)
        return project

    def write(self, content: bytes, name: str = "raw.jsonl") -> None:
        (self.raw / name).write_bytes(content)

    def clean(self) -> None:
        """Run the stage in this process."""
        with contextlib.chdir(self.folder):
            main()

    def command(self) -> subprocess.CompletedProcess[str]:
        """Run the stage as DVC does."""
        return subprocess.run(
            [sys.executable, "-m", "stages.prepare.clean"],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    def kept(self) -> list[Record]:
        return read_records(self.folder / paths.CLEAN)

    def rejected(self) -> list[dict[str, Any]]:
        lines = (self.folder / paths.REJECTED_CLEAN).read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def metrics(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads((self.folder / paths.CLEAN_METRICS).read_text(encoding="utf-8"))
        return result


def read_rows(file: RawFile, max_bytes: int) -> Iterator[Row]:
    """Every row of a file, in its order."""
    return (row for unparsed in read_unparsed(file, max_bytes) for row in parsed(file, unparsed))


def raw_bytes(rejected: dict[str, Any], raw: Path | None = None) -> bytes:
    """The rejected line as it was; an over-long one lies in its file below `raw`, where the row says."""
    if "offset" in rejected:
        assert raw
        assert not {"raw", "raw_base64"} & rejected.keys()
        with (raw / rejected["file"]).open("rb") as file:
            file.seek(rejected["offset"])
            content: bytes = file.read(rejected["length"])
        assert hashlib.sha256(content).hexdigest() == rejected["sha256"]
        return content
    if "raw" in rejected:
        return str(rejected["raw"]).encode()
    return base64.b64decode(rejected["raw_base64"])


def row(prompt: str = "Where is K-4821?", completion: Any = None, **columns: Any) -> bytes:
    """A raw row; the completion is written as JSON unless it is text."""
    text = completion if isinstance(completion, str) else json.dumps(completion or {"intent": "tracking"})
    return json.dumps({"prompt": prompt, "completion": text, **columns}, ensure_ascii=False).encode()
