"""What each verb of the `tunetrail` command calls: arguments in, the room's function, its answer printed.

Rooms are imported where they are used, so that a verb starts as quickly as what it needs.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.errors import Refusal, UserError

Options = argparse.Namespace


def repro(options: Options, root: Path, start: Path) -> None:
    from stages.repro import repro

    raise SystemExit(repro(root, options.arguments))


def trace(options: Options, root: Path, start: Path) -> None:
    from stages.ship.release.trace import show, trace

    trail = trace(root, options.name, start)
    print(json.dumps(trail, indent=2, default=str) if options.json else show(trail), flush=True)
    if broken := trail["file"]["trail"]["broken"]:
        raise Refusal(f"the trail of {trail['file']['path']} is broken in {len(broken)} place{'s' * (len(broken) > 1)}")


def sign(options: Options, root: Path, start: Path) -> None:
    from stages.ship.release.verify import sign, verify

    verify(root, root / paths.RELEASE)
    print(sign(root, root / paths.RELEASE, options.key, options.signature or root / paths.SIGNATURE))


def verify(options: Options, root: Path, start: Path) -> None:
    from stages.ship.release.verify import verify

    if options.signature and not options.key:
        raise UserError("--signature needs --key: a signature says nothing without knowing of whom it must be")
    repository = root if (root / paths.PIPELINE).is_file() else None
    print(verify(repository, options.path or root / paths.RELEASE, options.key, options.signature))


def gates(options: Options, root: Path, start: Path) -> None:
    from stages.report.tables import plain_lines
    from stages.report.verdict import gate_table
    from stages.ship.release.releasing import read_gates, require

    judged = read_gates(root)
    try:
        lines = plain_lines(gate_table(judged)[["State", "On", "Asked", "Measured"]].reset_index())
    except KeyError as error:
        raise UserError(f"{paths.GATES} is of another version: no {error}; run `dvc repro` to make it anew") from None
    print(*lines, f"verdict: {judged['verdict']}", sep="\n", flush=True)
    require(judged["verdict"], options.strict)


def review(options: Options, root: Path, start: Path) -> None:
    from stages.measure.review.server import review

    review(options.reviewer, options.port)


def release(options: Options, root: Path, start: Path) -> None:
    from stages.ship.release.releasing import release

    reasons = options.accept_marginal, options.no_push_check
    print(release(root, options.version, options.stage, *reasons, options.sign, options.key))


def history(options: Options, root: Path, start: Path) -> None:
    from stages.core.files import write_text
    from stages.report.release_history import as_page, as_text, with_headline
    from stages.ship.release.registry import history

    found, doubts = history(root, options.stage)
    rows = [with_headline(row) for row in found]
    if options.html:
        write_text(options.html, as_page(rows, doubts))
        print(options.html)
    elif options.json:
        print(json.dumps(rows, indent=2))
        print(*doubts, sep="\n", end="\n" * bool(doubts), file=sys.stderr)
    else:
        print(as_text(rows, doubts))


def rollback(options: Options, root: Path, start: Path) -> None:
    from stages.report.compare import changes
    from stages.ship.release.releasing import rollback

    print(rollback(root, options.version, options.stage, options.reason, changes, options.key))


def reproduce(options: Options, root: Path, start: Path) -> None:
    from stages.ship.release.reproduce import reproduce

    print(reproduce(root, options.name, options.key))


def publish(options: Options, root: Path, start: Path) -> None:
    from stages.ship.release.registry import parse_version
    from stages.ship.release.released_files import find_release, publish

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


def serve(options: Options, root: Path, start: Path) -> None:
    from stages.ship.serve.front import Front
    from stages.ship.serve.serving_loop import CURRENT, serve, start_adapters, start_engine

    given = dict(text.partition("=")[::2] for text in options.adapter)
    if given and (options.name or options.canary or not all(given.values()) or len(given) < len(options.adapter)):
        raise UserError("--adapter is NAME=VERSION or NAME=PATH, each name once, without a version or --canary beside")
    versions = {name: _version(options, root, start, place, True) for name, place in given.items()}
    key, link = _api_key(options), root / paths.RELEASES / CURRENT if options.name == CURRENT else None
    if link and not link.is_symlink():
        raise UserError("nothing is current yet; `tunetrail switch VERSION` says what is")
    serve(
        lambda name: start_engine(_version(options, root, start, name), options.context),
        link.readlink().name if link else options.name,
        lambda target: Front(target, key, options.log or root / paths.REQUESTS, options.log_text),
        (options.host, options.port),
        options.canary,
        link,
        (lambda: start_adapters(versions, root / paths.BASE, options.context)) if versions else None,
    )


def switch(options: Options, root: Path, start: Path) -> None:
    from stages.ship.serve.serving_loop import CURRENT, switch

    version = _version(options, root, start, options.name)
    print(switch(version, root / paths.RELEASES / CURRENT, options.url))


def _server(options: Options, version: Any) -> Any:
    from stages.engines.engine_server import Server

    base = options.url.rstrip("/").removesuffix("/v1")
    return Server(f"{base}/v1", version.id, version.engine, _api_key(options), slots=4)


def smoke(options: Options, root: Path, start: Path) -> None:
    from stages.ship.serve.smoke import smoke, table

    version = _version(options, root, start, options.name)
    checks = smoke(_server(options, version), version, version.golden(options.golden))
    print(table(checks), flush=True)
    if failed := [check.name for check in checks if not check.passed]:
        raise Refusal(f"{options.url} fails: {', '.join(failed)}")


def answer(options: Options, root: Path, start: Path) -> None:
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


def bases(options: Options, root: Path, start: Path) -> None:
    from stages.core.files import write_text
    from stages.report.tables import table_page, table_text
    from stages.tune import bases
    from stages.tune.estimate import read_prices

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


def estimate(options: Options, root: Path, start: Path) -> None:
    from stages.core.files import write_json
    from stages.tune.estimate import as_json, estimate, read_prices, sentences

    prices = read_prices(options.prices) if options.prices else None
    found = estimate(options.steps)
    write_json(paths.ENVIRONMENT / "estimate.json", as_json(found))  # for the page that says what came true
    print(json.dumps(as_json(found), indent=2) if options.json else "\n".join(sentences(found, prices)))


def collect(options: Options, root: Path, start: Path) -> None:
    from stages.params.loader import load_params
    from stages.weekly.collect import collect

    params = load_params("clean", "dedup", "task")
    print(collect(options.logs, params, options.limit, options.below, options.week))


def annotate(options: Options, root: Path, start: Path) -> None:
    from stages.measure.review.annotate import annotate
    from stages.params.loader import load_params

    path = options.inbox
    inbox = path.relative_to(root) if path.is_relative_to(root) else path
    print(annotate(inbox, options.annotator, options.others, options.overlap, options.port, load_params("task")))


def append(options: Options, root: Path, start: Path) -> None:
    from stages.params.loader import load_params
    from stages.prepare.clean.__main__ import row_cleaner
    from stages.weekly.append import append

    params = load_params("clean", "dedup", "task")
    print(append(options.files, params, row_cleaner(params)))


def preferences(options: Options, root: Path, start: Path) -> None:
    from stages.params.loader import load_params
    from stages.weekly.preferences import write_preferences

    print(write_preferences(options.logs, load_params("clean", "task"), options.name))


def feedback(options: Options, root: Path, start: Path) -> None:
    from stages.params.loader import load_params
    from stages.weekly.preferences import write_feedback

    params = load_params("dedup.threshold", "generation", "judge", "prefer.temperature", "seed", "task")
    print(write_feedback(options.principles, options.answers, params, options.name, options.rows))


def drift(options: Options, root: Path, start: Path) -> None:
    from stages.params.loader import load_params
    from stages.weekly.drift import as_text, drift

    found = drift(options.logs, load_params("clean", "seed", "task"))
    print(json.dumps(found, indent=2) if options.json else as_text(found), flush=True)
    if found["alarm"]:
        raise Refusal("the input has drifted")


def why(options: Options, root: Path, start: Path) -> None:
    from stages.params.loader import load_params
    from stages.weekly.why import as_text, free_inbox, why, write_inbox

    params = load_params("generation", "task", "train")
    if options.to:
        free_inbox(options.to)  # before minutes of work
    found = why(options.name, params, options.rows, options.prompt, options.task)
    written = write_inbox(found, options.to) if options.to else ""
    print(json.dumps(found, indent=2) if options.json else as_text(found))
    print(written, end="\n" if written else "", file=sys.stderr if options.json else sys.stdout)


def canary(options: Options, root: Path, start: Path) -> None:
    from stages.ship.serve.canary_release import STOP, judge_canary

    decision, said = judge_canary(options.log, options.margin, options.confidence)
    print(said, flush=True)
    if decision == STOP:
        raise Refusal("the canary is to be stopped")


def compare(options: Options, root: Path, start: Path) -> None:
    from stages.report.compare import compare, compare_files
    from stages.ship.release.lock_check import lock_check

    if bool(options.revisions) == bool(options.answers):
        raise UserError("name revisions to compare, or files of answers after --answers")
    try:
        lock = lock_check(root) + "." if len(options.revisions) == 1 else ""
    except UserError as error:
        lock = str(error)
    form = options.format
    said = compare_files(options.answers, form) if options.answers else compare(root, options.revisions, lock, form)
    print(said, end="")


def gc(options: Options, root: Path, start: Path) -> None:
    from stages.ship.release.garbage import garbage

    print(garbage(root, options.remote))


def lock_check(options: Options, root: Path, start: Path) -> None:
    from stages.ship.release.lock_check import lock_check

    print(lock_check(root, options.deep))


def merge_lock(options: Options, root: Path, start: Path) -> None:
    from stages.team.lock_merge import merge_lock

    print(merge_lock(root, options.revisions))


def sweep(options: Options, root: Path, start: Path) -> None:
    from stages.team.sweep import sweep

    print(sweep(root, options.path.relative_to(root) if options.path.is_relative_to(root) else options.path))


def doctor(options: Options, root: Path, start: Path) -> None:
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


def check(options: Options, root: Path, start: Path) -> None:
    from stages.prepare.clean.__main__ import check

    path = options.path
    print(check(path.relative_to(root) if path.is_relative_to(root) else path, options.strict))


def params(options: Options, root: Path, start: Path) -> None:
    from stages.describe_params import describe
    from stages.params.loader import check_params, read_params

    print(describe(check_params(read_params())))


def preflight(options: Options, root: Path, start: Path) -> None:
    from stages.limits import main

    main()


def draw(options: Options, root: Path, start: Path) -> None:
    from stages.prepare.split.draw import draw

    draw(options.redraw, options.source, options.add)
