"""A small repository with real git and real DVC, whose stages are one short script without a model."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dvc.cli import main as dvc_main

from stages.cli import main as tunetrail_main

STAGE = """
import hashlib, json, pathlib, sys

P = pathlib.Path
name = sys.argv[1]
rate = [line.split()[-1] for line in P("params.yaml").read_text().splitlines() if "learning_rate" in line][0]


def write(path, text):
    P(path).parent.mkdir(parents=True, exist_ok=True)
    P(path).write_bytes(text if isinstance(text, bytes) else text.encode())


def tensors(*made_of):
    data = hashlib.sha256(repr(made_of).encode()).hexdigest().encode()
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    return len(header).to_bytes(8, "little") + header + data


def read(path):
    return P(path).read_text()


def hashes(path):
    content = path.read_bytes()
    digests = {name: hashlib.new(name, content).hexdigest() for name in ("sha256", "md5")}
    return {**digests, "bytes": len(content)}


def listed(folder, below=""):
    return {str(p.relative_to(below)): hashes(p) for p in sorted(P(folder).rglob("*")) if p.is_file()}


def gates(state):
    measured = {"state": state, "value": 0.97, "low": 0.9, "high": 0.99, "reason": "0.970 of 48 rows"}
    asked = {"model": "adapter", "metric": "exact_match", "against": None, "of": {}}
    gate = {**measured, **asked, "threshold": 0.9, "kind": "minimum", "required": True}
    return {"verdict": state, "gates": {"exact_match": gate}}


if name == "base":
    write("models/base/model.safetensors", tensors("base"))
    write("models/base/tokenizer.json", "{}")
if name == "clean":
    rows = "".join(p.read_text() for p in sorted(P("data/raw").iterdir()))
    write("data/clean.jsonl", rows)
    write("metrics/clean.json", json.dumps({"rows": {"in": len(rows.splitlines())}}))
if name == "split":
    lines = read("data/clean.jsonl").splitlines(True)
    write("data/split/train.jsonl", "".join(lines[1:]))
    write("data/split/holdout.jsonl", lines[0])
if name == "train":
    write("models/adapter/adapter.safetensors", tensors(read("data/split/train.jsonl"), rate))
if name == "evaluate":
    found = {"adapter": {"exact_match": {"value": 0.97, "low": 0.9, "high": 0.98, "count": 47, "n": 48}}}
    write("metrics/evaluate.json", json.dumps(found))
    write("metrics/gates.json", json.dumps(gates("FAIL" if float(rate) > 0.5 else "PASS")))
    write("metrics/details.json", json.dumps({"evaluate": found}))
    write("metrics/summary.json", json.dumps({"verdict": {"pass": 1}, "adapter": {"exact_match": 0.97}}))
if name == "merge_quantize":
    for form in ("merged", "nf4"):
        write(f"models/release/{form}/model.safetensors", tensors(form, read("models/adapter/adapter.safetensors")))
        write(f"models/release/{form}/tokenizer.json", read("models/base/tokenizer.json"))
    write("metrics/quantize.json", json.dumps({"artefacts": {}}))
if name == "manifest":
    base = {"source": "package:tiny==1", "sha256": "0" * 64, "licence": "Apache-2.0", "files": listed("models/base")}
    files = {**listed("models/release/merged", "models/release"), **listed("models/release/nf4", "models/release")}
    write("models/release/README.md", "# A model")
    files["README.md"] = hashes(P("models/release/README.md"))
    formats = {form: {"engine": "transformers"} for form in ("merged", "nf4")}
    manifest = {"format": 2, "files": files, "formats": formats, "adapter": listed("models/adapter"), "base": base}
    write("models/release/manifest.json", json.dumps(manifest))
""".lstrip()

PARAMS = """
seed: 1
model:
  source: package:tiny==1
  sha256: ""
  licence: Apache-2.0
train:
  learning_rate: 1e-3
""".lstrip()

PIPELINE = """
stages:
  base:
    cmd: python -ES stages/run.py base
    params: [model]
    outs: [models/base]
  clean:
    cmd: python -ES stages/run.py clean
    deps: [data/raw, stages/clean]
    outs: [data/clean.jsonl, metrics/clean.json]
  split:
    cmd: python -ES stages/run.py split
    deps: [data/clean.jsonl]
    params: [seed]
    outs: [data/split]
  train:
    cmd: python -ES stages/run.py train
    deps: [data/split/train.jsonl, models/base, stages/train, constraints.txt]
    params: [train]
    outs: [models/adapter]
  evaluate:
    cmd: python -ES stages/run.py evaluate
    deps: [models/adapter, data/split/holdout.jsonl]
    outs: [metrics/evaluate.json, {metrics/gates.json: {cache: false}}, {metrics/details.json: {cache: false}}]
    metrics: [{metrics/summary.json: {cache: false}}]
  merge_quantize:
    cmd: python -ES stages/run.py merge_quantize
    deps: [models/adapter, models/base, metrics/evaluate.json]
    outs: [models/release/merged, models/release/nf4, metrics/quantize.json]
  manifest:
    cmd: python -ES stages/run.py manifest
    deps: [models/adapter, models/base, models/release/merged, models/release/nf4]
    outs: [models/release/manifest.json, models/release/README.md]
artifacts:
  support-tickets:
    path: models/release/manifest.json
    type: model
""".lstrip()

IGNORED = "__pycache__/\n/models\n/data/clean.jsonl\n/data/split\n" + "".join(
    f"/metrics/{name}.json\n" for name in ("clean", "evaluate", "quantize")
)
FILES = {
    "stages/run.py": STAGE,
    "stages/clean/rules.py": "RULES = 1\n",
    "stages/train/loop.py": "LOOP = 1\n",
    "params.yaml": PARAMS,
    "dvc.yaml": PIPELINE,
    "constraints.txt": "torch==2\n",
    "data/raw/a.jsonl": '{"n": 1}\n{"n": 2}\n{"n": 3}\n',
    ".dvcignore": "__pycache__/\n*.pyc\n",
    ".gitignore": IGNORED,
}

ENVIRONMENT = {
    "GIT_AUTHOR_NAME": "Ann",
    "GIT_AUTHOR_EMAIL": "ann@example.org",
    "GIT_COMMITTER_NAME": "Ann",
    "GIT_COMMITTER_EMAIL": "ann@example.org",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "1",
}


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Scratch:
    """One repository; every command runs in `root` unless told otherwise."""

    root: Path

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def replace(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commit(self, message: str) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
        return self.git("rev-parse", "HEAD")

    def dvc(self, *arguments: str) -> None:
        with contextlib.chdir(self.root), contextlib.redirect_stdout(io.StringIO()):
            assert dvc_main([*arguments, "--quiet"]) in (0, None), arguments

    def tunetrail(self, *arguments: str, cwd: Path | None = None) -> Answer:
        out, err, code = io.StringIO(), io.StringIO(), 0
        with (
            contextlib.chdir(cwd or self.root),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                tunetrail_main(arguments)
            except SystemExit as stop:
                code = int(stop.code or 0)
        return Answer(code, out.getvalue(), err.getvalue())

    def copy(self, target: Path) -> "Scratch":
        shutil.copytree(self.root, target)
        return Scratch(target)

    def forget_cache(self) -> None:
        shutil.rmtree(self.root / ".dvc" / "cache")


def make_scratch(folder: Path) -> Scratch:
    """A repository whose pipeline ran once and was committed as "Run A"."""
    scratch = Scratch(folder)
    for name, text in FILES.items():
        scratch.write(name, text)
    scratch.git("init", "--quiet", "--initial-branch=main")
    scratch.dvc("init")
    scratch.dvc("config", "core.analytics", "false")
    scratch.dvc("repro")
    scratch.commit("Run A")
    return scratch
