"""verify: is a release folder, byte for byte, what its manifest says, and does dvc.lock or a signature speak for it?

A signature is a Sigstore bundle by OpenSSF model-signing, made with a key in a file. It holds the name and the SHA-256
of every file, so that it shows more than "changed". It lies beside dvc.lock in git, outside the folder that it signs.
"""

import base64
import json
import posixpath
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.dvc_lock import read_lock
from stages.core.errors import Refusal, UserError
from stages.core.files import atomic, content_hashes, file_digest
from stages.core.git import LOCK, Repository, WorkingTree
from stages.ship.release.dvc_files import Listings, read_manifest
from stages.ship.release.finding import recorded
from stages.ship.release.objects import lost_releases

# Formats that run code when they are loaded: Python pickles, and archives that hold them.
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".keras"}
_PATH_SHOWN, _NAME_SHOWN = 200, 80
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


def verify(root: Path | None, folder: Path, key: Path | None = None, signature: Path | None = None) -> str:
    """Check a release folder; return the sentences that say what holds.

    Against its manifest always; against the signature with the public key; against dvc.lock in the repository `root`,
    where that is known and the folder lies in it or no key speaks for the folder. Raises Refusal with every difference
    at once; UserError when there is no manifest, or a key or signature that cannot be read.
    """
    # Without a .., by which a copy beside the repository seems to lie in it.
    folder = Path(posixpath.normpath(folder.absolute().as_posix()))
    inside = root is not None and folder.is_relative_to(root)
    label = folder.relative_to(root) if root and inside else folder
    trail = root if inside or key is None else None  # whose dvc.lock must speak for the folder
    listings = Listings(root or folder.parent)
    place = signature or (root or folder.parent) / paths.SIGNATURE
    if key and (found := [*odd_entries(folder, listings), *signed_differences(folder, key, place)]):
        raise Refusal(f"{label} is not what {place.name} signed:\n  " + "\n  ".join(found))
    found = [*differences(folder, listings), *(_manifest_differences(trail, folder, listings) if trail else ())]
    if found:
        fault = f"is not what its manifest and {LOCK} say" if trail else "is not what its manifest says"
        raise Refusal(f"{label} {fault}:\n  " + "\n  ".join(found))
    count = len((read_manifest(folder / paths.MANIFEST.name) or {})["files"])
    said = f"{label}: {count} files are what the manifest says" + (f", and {LOCK} holds the manifest" if trail else "")
    if key:
        said += f"\n{place.name} is the signature of these files by {key.name}"
    elif not trail:
        said += "; only a signature says whose manifest it is: give --key and --signature"
    return "\n".join([said, *(lost_releases(Repository(trail), listings) if trail else ())])


def differences(folder: Path, listings: Listings) -> list[str]:
    """Every way in which a folder is not what its manifest says. Raises UserError without a sound manifest."""
    path = folder / paths.MANIFEST.name
    manifest = read_manifest(path)
    if manifest is None:
        raise UserError(
            f"{str(path)[:_PATH_SHOWN]} is missing or no manifest; `dvc checkout` restores it, `dvc repro` makes it"
        )
    for name, row in manifest["files"].items():
        if not isinstance(row, dict) or not {"sha256", "md5", "bytes"} <= row.keys():
            raise UserError(f"{path} has no sha256, md5 and bytes for {shown(name)}; `dvc checkout` restores it")
    return [*odd_entries(folder, listings), *_file_differences(folder, manifest["files"]), *_pickles(folder)]


def odd_entries(folder: Path, listings: Listings) -> Iterator[str]:
    """What is neither a plain file, a folder with files in it, nor DVC's link of a file into its cache."""
    for path in sorted(folder.rglob("*")):
        mode, name = path.lstat().st_mode, shown(path.relative_to(folder).as_posix())
        if stat.S_ISLNK(mode):
            if not path.exists():  # a link to itself, too
                yield f"{name} is a link to {path.readlink()}, which is not there; `dvc fetch` and `dvc checkout` help"
            elif not (path.is_file() and path.resolve().is_relative_to(listings.cache.resolve())):
                yield f"{name} is a link to {path.readlink()}; only files ship, or links of files into DVC's cache"
        elif stat.S_ISDIR(mode):
            if not any(path.iterdir()):
                yield f"{name} is an empty folder, which no manifest can name"
        elif not stat.S_ISREG(mode):
            yield f"{name} is neither a file nor a folder"


def _file_differences(folder: Path, files: dict[str, Any]) -> Iterator[str]:
    found = {name: content_hashes(folder / name) for name in shipped_files(folder) if name != paths.MANIFEST.name}
    expected, here = ({name: row["sha256"] for name, row in rows.items()} for rows in (files, found))
    yield from changes(expected, here, "the manifest")
    for name in sorted(files.keys() & found.keys()):
        if found[name]["sha256"] == files[name]["sha256"] and {**files[name], **found[name]} != files[name]:
            yield f"{shown(name)} has another size or MD5 than the manifest says"


def _pickles(folder: Path) -> Iterator[str]:
    """Tensors ship as safetensors alone: loading one of these can run code."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = shown(path.relative_to(folder).as_posix())
        with path.open("rb") as handle:
            start = handle.read(9)
        if path.suffix.lower() in _PICKLES or start.startswith(_PICKLE_STARTS):
            yield f"{name} can hold a pickle, which runs code when it is loaded; only safetensors may ship"
        elif path.suffix == ".safetensors" and not _is_safetensors(path):
            yield f"{name} is no safetensors file"


def _is_safetensors(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return True
    except SafetensorError:
        return False


def _manifest_differences(root: Path, folder: Path, listings: Listings) -> Iterator[str]:
    """The manifest must be an output of dvc.lock; that of a copy elsewhere, of any of its versions."""
    md5, name = file_digest(folder / paths.MANIFEST.name, "md5"), paths.MANIFEST.name
    outs = {out.path: out.md5 for _, out in read_lock(WorkingTree(root)).outs()}
    if folder.is_relative_to(root):
        if outs.get((folder / name).relative_to(root).as_posix()) != md5:
            yield f"{name} is not the one in {LOCK}"
    elif md5 not in outs.values() and not recorded(Repository(root), md5, name, listings):
        yield ". ".join(filter(None, [f"{name} is in no version of {LOCK}", Repository(root).lacks_history()]))


def sign(root: Path, folder: Path, key: Path, signature: Path) -> str:
    """Sign the folder as it is.

    Raises UserError for a key that cannot be read, is encrypted or of another kind, or lies where git would take it;
    for a signature inside the folder.
    """
    from model_signing import signing

    if signature.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{signature} would be a file of the release that it signs; put it beside {folder.name}")
    listed = ["ls-files", "--cached", "--others", "--exclude-standard", "--", str(key.resolve())]
    if Repository(root).git(*listed, check=False):
        raise UserError(f"{key} is a private key inside the repository, and git does not ignore it: keep it elsewhere")
    config = _with_key(_config(signing).use_elliptic_key_signer, "private", key)
    with atomic(signature) as partial:
        config.sign(folder, partial)
    return f"Signed {folder.name}: {len(_resources(signature))} files, in {signature.name}; commit it beside dvc.lock"


def signed_differences(folder: Path, key: Path, signature: Path) -> list[str]:
    """Every way in which the folder is not the one that was signed; empty when it is.

    Raises UserError for a public key or a signature that cannot be read; Refusal when the signature is not by this key,
    or was changed.
    """
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    config = _with_key(_config(verifying).use_elliptic_key_verifier, "public", key)
    if not signature.is_file():
        raise UserError(f"{signature} is missing; `tunetrail sign --key KEY` writes it, --signature FILE names another")
    try:
        config.verify(folder, signature)
    except (ValueError, InvalidSignature, KeyError, TypeError, AttributeError, RecursionError) as error:
        # Any JSON can be there. A bundle holds when it comes to the files: another than was signed, or unreadable.
        if not str(error).startswith(("Signature mismatch", "Cannot use")):
            raise Refusal(f"{signature} is no signature by {key}: it was changed, or made with another key") from None
        found = {name: file_digest(folder / name) for name in shipped_files(folder)}
        return list(changes(_resources(signature), found, "the signature"))
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


def shipped_files(folder: Path) -> list[str]:
    """The names of all files below a folder, links of files too, without what lies behind links of folders."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def changes(expected: Mapping[str, str], found: Mapping[str, str], origin: str) -> Iterator[str]:
    """A sentence for each file that was renamed, is missing or extra, was swapped, replaced by another, or changed."""
    new = sorted(found.keys() - expected.keys())
    for name in sorted(expected.keys() - found.keys()):
        moved = next((other for other in new if found[other] == expected[name]), None)
        if moved is None:
            yield f"{shown(name)} is missing"
        else:
            new.remove(moved)
            yield f"{shown(name)} was renamed: its bytes are in {shown(moved)}"
    yield from (f"{shown(name)} is not in {origin}" for name in new)
    for name in sorted(expected.keys() & found.keys()):
        if found[name] == expected[name]:
            continue
        twin = next((one for one, digest in sorted(expected.items()) if digest == found[name]), None)
        if twin is None:
            yield f"{shown(name)} has other bytes than {origin} says"
        else:
            how = "swapped with" if found.get(twin) == expected[name] else "replaced by the bytes of"
            yield f"{shown(name)} was {how} {shown(twin)}"


def shown(name: str) -> str:
    """A file's name as a sentence has it: short, and without what a terminal would obey."""
    return name if len(name) <= _NAME_SHOWN and name.isprintable() else repr(name[:_NAME_SHOWN])
