"""The `tunetrail` command: the read side of the pipeline, and what is done by hand."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.errors import Refusal, UserError, run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand; exit code 0, 1 when it refuses, 2 for bad input."""
    options = parser().parse_args(arguments)
    try:
        run(lambda: _in_root(options))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="tunetrail", description="From a deployed file back to all that made it.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    # Every argument is dvc's, also one that begins with a dash.
    command = commands.add_parser(
        "repro",
        help="run `dvc repro` after mending what a kill left",
        prefix_chars="\0",
        add_help=False,
    )
    command.add_argument("arguments", metavar="ARGUMENT", nargs="*", help="of `dvc repro`")
    command.set_defaults(call=_repro)

    command = commands.add_parser("trace", help="show what made a file, folder or release tag")
    command.add_argument("name", metavar="PATH_OR_TAG")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(call=_trace)

    command = commands.add_parser("sign", help="sign the release folder with a key in a file")
    command.add_argument("--key", metavar="PRIVATE.pem", required=True, help="ECDSA on P-256, P-384 or P-521, in PEM")
    command.add_argument("--signature", metavar="FILE", help=f"default: {paths.SIGNATURE} beside {paths.PIPELINE}")
    command.set_defaults(call=_sign)

    command = commands.add_parser("verify", help="check a release folder against its manifest, dvc.lock and signature")
    command.add_argument("path", metavar="PATH", nargs="?", help=f"default: {paths.RELEASE}")
    command.add_argument("--key", metavar="PUBLIC.pem", help="of whom the signature must be; needs no repository")
    command.add_argument("--signature", metavar="FILE", help=f"default: {paths.SIGNATURE} beside dvc.yaml or PATH")
    command.set_defaults(call=_verify)

    command = commands.add_parser("gates", help="show the gates; exit with 1 when they fail")
    command.add_argument("--strict", action="store_true", help="also exit with 1 when they are MARGINAL")
    command.set_defaults(call=_gates)

    command = commands.add_parser("review", help="compare answers on a page, without knowing which model gave them")
    command.add_argument("--reviewer", metavar="NAME", required=True, help=f"answers go to {paths.REVIEWS}/NAME.jsonl")
    command.add_argument("--port", type=int, default=0, help="default: a free one")
    command.set_defaults(call=_review)

    command = commands.add_parser("release", help="tag HEAD as a release, unless something is open")
    command.add_argument("version", metavar="VERSION", help="MAJOR.MINOR.PATCH")
    command.add_argument("--stage", metavar="STAGE", help="assign it to this stage, too, such as prod")
    command.add_argument("--accept-marginal", metavar="REASON", help="release MARGINAL gates; the tag says why")
    command.add_argument("--sign", action="store_true", help="let git sign the tags")
    command.add_argument("--key", metavar="PUBLIC.pem", help=f"of whom {paths.SIGNATURE} must be")
    command.add_argument("--no-push-check", metavar="REASON", help="do not ask the DVC remote; the tag says why")
    command.set_defaults(call=_release)

    command = commands.add_parser("history", help="show which release was live from when to when")
    command.add_argument("--stage", metavar="STAGE", help="of this stage alone, such as prod")
    command.add_argument("--json", action="store_true", help="print one JSON list")
    command.add_argument("--html", metavar="FILE", help="write a page instead")
    command.set_defaults(call=_history)

    command = commands.add_parser("rollback", help="go back to a released version and say what changes")
    command.add_argument("version", metavar="VERSION", help="MAJOR.MINOR.PATCH")
    command.add_argument("--stage", metavar="STAGE", help="assign it to this stage, too, such as prod")
    command.add_argument("--reason", help="why, for the history")
    command.add_argument("--key", metavar="PUBLIC.pem", help=f"of whom {paths.SIGNATURE} must be")
    command.set_defaults(call=_rollback)

    command = commands.add_parser(
        "reproduce", help="make a release again from its inputs alone and compare every output"
    )
    command.add_argument("name", metavar="VERSION", help="or the tag of the release")
    command.add_argument("--key", metavar="PRIVATE.pem", help="sign the attestation")
    command.set_defaults(call=_reproduce)

    command = commands.add_parser("serve", help="answer requests with a release, through its engine")
    _of_release(command)
    command.add_argument("name", metavar="VERSION|PATH", nargs="?", help=f"default: {paths.RELEASE}; or: current")
    command.add_argument("--host", default="127.0.0.1", help="another than this machine's own needs an API key")
    command.add_argument("--port", type=int, default=0, help="default: a free one")
    command.add_argument("--api-key-variable", metavar="NAME", help="environment variable with the clients' key")
    command.add_argument(
        "--context", metavar="TOKENS", type=int, default=2048, help="of prompt and answer; default: 2048"
    )
    command.add_argument("--canary", metavar="VERSION=10%", help="give a share of the requests to this version")
    command.add_argument("--log", metavar="FILE", help=f"a line a request, without its text; default: {paths.REQUESTS}")
    command.set_defaults(call=_serve)

    command = commands.add_parser("switch", help="let `serve current` go over to a version, without a pause")
    _of_release(command)
    command.add_argument("name", metavar="VERSION", help="MAJOR.MINOR.PATCH")
    command.add_argument("--url", help="of `serve current`: wait until it serves that version")
    command.set_defaults(call=_switch)

    command = commands.add_parser("smoke", help="ask a server what it must know and survive; exit with 1 if it fails")
    _of_release(command)
    command.add_argument("url", metavar="URL", help="of a server of this release")
    command.add_argument("--release", metavar="VERSION|PATH", dest="name", help=f"default: {paths.RELEASE}")
    command.add_argument("--api-key-variable", metavar="NAME", help="environment variable with the key")
    command.add_argument("--golden", metavar="ROWS", type=int, default=5, help="of the hold-out; default: 5")
    command.set_defaults(call=_smoke)

    command = commands.add_parser("answer", help="answer a file of prompts with a release; run again to go on")
    _of_release(command)
    command.add_argument("source", metavar="IN.jsonl", help='rows {"prompt": TEXT}')
    command.add_argument("target", metavar="OUT.jsonl", help="the same rows with their answer and the release's id")
    command.add_argument("--release", metavar="VERSION|PATH", dest="name", help=f"default: {paths.RELEASE}")
    command.add_argument("--url", help="ask a server of this release in place of one that is started for it")
    command.add_argument("--api-key-variable", metavar="NAME", help="environment variable with its key")
    command.set_defaults(call=_answer)

    command = commands.add_parser("canary", help="say whether a canary goes on; exit with 1 if it is to be stopped")
    command.add_argument("log", metavar="LOG", help="of `tunetrail serve --canary`")
    command.add_argument("--margin", type=float, default=0.02, help="how much worse is no harm; default: 0.02")
    command.add_argument("--confidence", type=float, default=0.95, help="of all comparisons together; default: 0.95")
    command.set_defaults(call=_canary)

    command = commands.add_parser("compare", help="show as Markdown what changed against a branch")
    command.add_argument("base", metavar="BASE", help="a branch, tag or commit, such as origin/main")
    command.set_defaults(call=_compare)

    command = commands.add_parser("lock-check", help="check that dvc.lock belongs to this code, data and parameters")
    command.add_argument("--deep", action="store_true", help="hash the working tree and DVC's cache, too")
    command.set_defaults(call=_lock_check)

    command = commands.add_parser("doctor", help="find damaged objects of DVC's cache and remote, and heal them")
    command.set_defaults(call=_doctor)

    data = commands.add_parser("data", help="raw data").add_subparsers(required=True, metavar="COMMAND")
    command = data.add_parser("check", help="show what cleaning would do with a file; exit with 2 when it is unfit")
    command.add_argument("path", metavar="FILE", help="a file, a data set saved on disk, or a folder of them")
    command.add_argument("--strict", action="store_true", help="one rejected row makes it unfit")
    command.set_defaults(call=_check)

    command = commands.add_parser("params", help="print every parameter with its value, default and meaning")
    command.add_argument("--markdown", action="store_true", help="print docs/parameters.md instead")
    command.set_defaults(call=_params)

    command = commands.add_parser("preflight", help="check a training run before it starts; exit with 2 for a problem")
    command.set_defaults(call=_preflight)

    holdout = commands.add_parser("holdout", help="the locked evaluation records").add_subparsers(
        required=True, metavar="COMMAND"
    )
    command = holdout.add_parser("draw", help="draw the hold-out, or take a source for it, and write its lock")
    command.add_argument("--redraw", action="store_true", help="replace the lock that is there")
    command.add_argument("--source", metavar="NAME", help="lock all rows of a source, such as a published test set")
    command.set_defaults(call=_draw)
    return top


def _of_release(command: argparse.ArgumentParser) -> None:
    """What the commands that serve a release have in common."""
    command.add_argument("--key", metavar="PUBLIC.pem", help=f"of whom {paths.SIGNATURE} must be")
    command.add_argument(
        "--unreleased", metavar="WHY", help="take what is not released, not signed or failed its gates"
    )
    command.add_argument("--engine", choices=["llama.cpp", "transformers", "vllm"], help="default: by what ships")


def _in_root(options: argparse.Namespace) -> None:
    """Call the subcommand in the repository's root; its own paths count from where the user stands."""
    from stages.core.git import find_root

    start = Path.cwd()
    try:
        root = find_root(start)
    except UserError:
        if options.call is not _verify or not options.path:
            raise
        root = start  # a release folder can be checked where there is no repository
    os.chdir(root)
    try:
        options.call(options, root, start)
    except PermissionError as error:
        raise UserError(f"{error.filename}: {error.strerror}; give yourself the right to read it") from None


def _repro(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.repro import repro

    raise SystemExit(repro(root, options.arguments))


def _trace(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.ship.release.described import show
    from stages.ship.release.trace import trace

    trail = trace(root, options.name, start)
    print(json.dumps(trail, indent=2, ensure_ascii=False, default=str) if options.json else show(trail), flush=True)
    if broken := trail["file"]["trail"]["broken"]:
        raise Refusal(f"the trail of {trail['file']['path']} is broken in {len(broken)} place{'s' * (len(broken) > 1)}")


def _sign(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.ship.release.signature import sign
    from stages.ship.release.verify import verify

    place = start / options.signature if options.signature else root / paths.SIGNATURE
    verify(root, root / paths.RELEASE)
    print(sign(root, root / paths.RELEASE, start / options.key, place))


def _verify(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.ship.release.verify import verify

    repository = root if (root / paths.PIPELINE).is_file() else None
    folder = start / options.path if options.path else root / paths.RELEASE
    key, signature = (start / name if name else None for name in (options.key, options.signature))
    if signature and not key:
        raise UserError("--signature needs --key: a signature says nothing without knowing of whom it must be")
    print(verify(repository, folder, key, signature))


def _gates(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.report.tables import plain_lines
    from stages.report.verdict import gate_table
    from stages.ship.release.tag import read_gates, require

    judged = read_gates(root)
    try:
        lines = plain_lines(gate_table(judged)[["State", "On", "Asked", "Measured"]].reset_index())
    except KeyError as error:
        raise UserError(f"{paths.GATES} is of another version: no {error}; run `dvc repro` to make it anew") from None
    print(*lines, f"verdict: {judged['verdict']}", sep="\n", flush=True)
    require(judged["verdict"], options.strict)


def _review(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.measure.review.server import review

    review(options.reviewer, options.port)


def _release(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.ship.release.tag import release

    reasons = options.accept_marginal, options.no_push_check
    key = start / options.key if options.key else None
    print(release(root, options.version, options.stage, *reasons, options.sign, key))


def _history(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.core.files import write_text
    from stages.report.release_history import as_page, as_text, with_headline
    from stages.ship.release.history import history

    rows = [with_headline(row) for row in history(root, options.stage)]
    if options.html:
        write_text(start / options.html, as_page(rows))
        print(options.html)
    else:
        print(json.dumps(rows, indent=2) if options.json else as_text(rows))


def _rollback(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.report.compare import changes
    from stages.ship.release.rollback import rollback

    key = start / options.key if options.key else None
    print(rollback(root, options.version, options.stage, options.reason, changes, key))


def _reproduce(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.ship.release.reproduce import reproduce

    print(reproduce(root, options.name, start / options.key if options.key else None))


def _version(options: argparse.Namespace, root: Path, start: Path, name: str | None) -> Any:
    from stages.ship.release.released_files import find_release
    from stages.ship.serve.served_version import version_of

    key = start / options.key if options.key else None
    place = start if name else root
    return version_of(find_release(root, place, key, options.unreleased, name or str(paths.RELEASE)), options.engine)


def _api_key(options: argparse.Namespace) -> str | None:
    name = options.api_key_variable
    if name and not os.environ.get(name):
        raise UserError(f"--api-key-variable {name}: there is no such environment variable, or it is empty")
    return os.environ[name] if name else None


def _serve(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.ship.serve.serving_loop import CURRENT, Address, serve, start_engine

    link = root / paths.RELEASES / CURRENT if options.name == CURRENT else None
    if link and not link.is_symlink():
        raise UserError("nothing is current yet; `tunetrail switch VERSION` says what is")
    log = start / options.log if options.log else root / paths.REQUESTS
    serve(
        lambda name: start_engine(_version(options, root, start, name), options.context),
        link.readlink().name if link else options.name,
        Address(options.host, options.port, _api_key(options), log),
        options.canary,
        link,
    )


def _switch(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.ship.serve.serving_loop import CURRENT, switch

    version = _version(options, root, start, options.name)
    print(switch(version, root / paths.RELEASES / CURRENT, options.url))


def _server(options: argparse.Namespace, version: Any) -> Any:
    from stages.engines.engine_server import Server

    base = options.url.rstrip("/").removesuffix("/v1")
    return Server(f"{base}/v1", version.id, version.engine, _api_key(options), slots=4)


def _smoke(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.ship.serve.smoke import smoke, table

    version = _version(options, root, start, options.name)
    checks = smoke(_server(options, version), version, version.golden(options.golden))
    print(table(checks), flush=True)
    if failed := [check.name for check in checks if not check.passed]:
        raise Refusal(f"{options.url} fails: {', '.join(failed)}")


def _answer(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.ship.serve.answer_file import answer_file
    from stages.ship.serve.serving_loop import start_engine

    version = _version(options, root, start, options.name)
    source, target = start / options.source, start / options.target
    if options.url:
        print(answer_file(source, target, version, _server(options, version)))
        return
    engine = start_engine(version)
    try:
        print(answer_file(source, target, version, engine.server))
    finally:
        engine.close()


def _canary(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.ship.serve.canary_release import STOP, judge_canary

    decision, said = judge_canary(start / options.log, options.margin, options.confidence)
    print(said, flush=True)
    if decision == STOP:
        raise Refusal("the canary is to be stopped")


def _compare(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.core.errors import UserError
    from stages.report.compare import compare
    from stages.ship.release.lock_check import lock_check

    try:
        lock = lock_check(root) + "."
    except UserError as error:
        lock = str(error)
    print(compare(root, options.base, lock), end="")


def _lock_check(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.ship.release.lock_check import lock_check

    print(lock_check(root, options.deep))


def _doctor(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.ship.release.doctor import doctor

    print(doctor(root))


def _check(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.prepare.clean.__main__ import check

    path = start / options.path
    print(check(path.relative_to(root) if path.is_relative_to(root) else path, options.strict))


def _params(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.describe_params import describe, markdown
    from stages.params.loader import check_params, read_params

    print(
        markdown() if options.markdown else describe(check_params(read_params())), end="" if options.markdown else None
    )


def _preflight(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.limits import main

    main()


def _draw(options: argparse.Namespace, root: Path, start: Path) -> None:
    from stages.prepare.split.draw import draw

    draw(options.redraw, options.source)


if __name__ == "__main__":
    main()
