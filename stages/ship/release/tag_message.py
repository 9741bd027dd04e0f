"""The release record: the JSON message of a release tag, and GTO's form of its name."""

import json
import re
from typing import Any

from stages.core.git import Repository

# GTO's forms: an artifact's name and a semantic version (semver.org, 2.0.0).
ARTIFACT = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-/_]*[a-zA-Z0-9])?")
_IDENTIFIER = r"(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)"
VERSION = re.compile(
    r"(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)"
    rf"(?:-{_IDENTIFIER}(?:\.{_IDENTIFIER})*)?(?:\+[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*)?"
)


def tag_name(artifact: str, version: str) -> str:
    return f"{artifact}@v{version}"


def read_record(repository: Repository, tag: str) -> dict[str, Any]:
    """The record in a tag's message; empty for a tag that holds none. A signature after it is passed over."""
    message = repository.git("for-each-ref", "--format=%(contents)", f"refs/tags/{tag}", check=False)
    try:
        record, _ = json.JSONDecoder().raw_decode(message)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
