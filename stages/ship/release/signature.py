"""The signature of a release: a Sigstore bundle by OpenSSF model-signing, made with a key in a file.

It holds the name and the SHA-256 of every file of the folder, so that it shows more than "changed": what is missing,
extra, renamed or swapped. It lies beside dvc.lock in git, outside the folder that it signs.
"""

import base64
import json
from pathlib import Path
from typing import Any

from stages.core.errors import Refusal, UserError
from stages.core.files import atomic
from stages.core.git import Repository
from stages.ship.release.changed_files import changes, digests


def sign(root: Path, folder: Path, key: Path, signature: Path) -> str:
    """Sign the folder as it is.

    Raises:
        UserError: for a key that cannot be read, is encrypted or of another kind, or lies where git would take it; for
            a signature inside the folder.
    """
    from model_signing import signing

    if signature.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{signature} would be a file of the release that it signs; put it beside {folder.name}")
    if key.resolve().is_relative_to(root.resolve()) and not Repository(root).git("check-ignore", str(key), check=False):
        raise UserError(f"{key} is a private key inside the repository, and git does not ignore it: keep it elsewhere")
    config = _with_key(_config(signing).use_elliptic_key_signer, "private", key)
    with atomic(signature) as partial:
        config.sign(folder, partial)
    return f"Signed {folder.name}: {len(_resources(signature))} files, in {signature.name}; commit it beside dvc.lock"


def signed_differences(folder: Path, key: Path, signature: Path) -> list[str]:
    """Every way in which the folder is not the one that was signed; empty when it is.

    Raises:
        UserError: for a public key or a signature that cannot be read.
        Refusal: when the signature is not by this key, or was changed.
    """
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    config = _with_key(_config(verifying).use_elliptic_key_verifier, "public", key)
    if not signature.is_file():
        raise UserError(f"{signature} is missing; `tunetrail sign --key KEY` writes it, --signature FILE names another")
    try:
        config.verify(folder, signature)
    except (ValueError, InvalidSignature, KeyError, TypeError, AttributeError) as error:  # of whatever JSON is there
        # The bundle holds when it comes to the files: another one than was signed, or one that cannot be read.
        if not str(error).startswith(("Signature mismatch", "Cannot use")):
            raise Refusal(f"{signature} is no signature by {key}: it was changed, or made with another key") from None
        return list(changes(_resources(signature), digests(folder), "the signature"))
    return []


def _config(library: Any) -> Any:
    """Every file counts, also those of git; links are files here, and `verify` says which may be there."""
    from model_signing import hashing

    every: Any = hashing.Config
    files = every().set_ignored_paths(paths=(), ignore_git_paths=False).set_allow_symlinks(True)
    return library.Config().set_hashing_config(files)


def _with_key(use: Any, kind: str, path: Path) -> Any:
    """Give the library a key. No error of it is passed on, for none may show what is in the file."""
    try:
        return use(**{f"{kind}_key": path})
    except OSError as error:
        raise UserError(f"{kind} key {path}: {error.strerror}; `--key FILE` names it") from None
    except TypeError:
        raise UserError(
            f"{kind} key {path} is encrypted; give one that is not, in a file that you alone can read"
        ) from None
    except Exception:  # ValueError, UnsupportedAlgorithm, or AttributeError for RSA
        raise UserError(f"{path} is no {kind} key for ECDSA on P-256, P-384 or P-521 in PEM form") from None


def _resources(signature: Path) -> dict[str, str]:
    """File to SHA-256, as the bundle says: to be believed only when it was verified."""
    payload = json.loads(signature.read_bytes())["dsseEnvelope"]["payload"]
    return {row["name"]: row["digest"] for row in json.loads(base64.b64decode(payload))["predicate"]["resources"]}
