"""The `tunetrail` command: the read side of the pipeline, and what is done by hand."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stages import commands
from stages.core import paths
from stages.core.errors import UserError, run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand; exit code 0, 1 when it refuses, 2 for bad input."""
    try:
        run(lambda: _in_root(parser().parse_args(arguments)))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="tunetrail", description="From a deployed file back to all that made it.")
    verbs = top.add_subparsers(required=True, metavar="COMMAND")
    data = verbs.add_parser("data", help="raw data").add_subparsers(required=True, metavar="COMMAND")
    locked = verbs.add_parser("holdout", help="the locked evaluation records")
    holdout = locked.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str, among: Any = verbs, **settings: Any) -> argparse.ArgumentParser:
        """The verb `lock-check` calls `commands.lock_check`."""
        added: argparse.ArgumentParser = among.add_parser(name, help=text, **settings)
        added.set_defaults(call=getattr(commands, name.replace("-", "_")))
        return added

    def several(parsers: Sequence[argparse.ArgumentParser], *names: str, **settings: Any) -> None:
        """An argument that several verbs have."""
        for one in parsers:
            one.add_argument(*names, **settings)

    count = partial(_number, 1)
    # Every argument of `repro` is dvc's, also one that begins with a dash.
    repro = command("repro", "run `dvc repro` after mending what a kill left", prefix_chars="\0", add_help=False)
    repro.add_argument("arguments", metavar="ARGUMENT", nargs="*", help="of `dvc repro`")
    trace = command("trace", "show what made a file, folder or release tag")
    trace.add_argument("name", metavar="PATH_OR_TAG")
    sign = command("sign", "sign the release folder with a key in a file")
    sign.add_argument("--key", metavar="PRIVATE.pem", type=_path, required=True, help="ECDSA on a NIST curve, in PEM")
    verify = command("verify", "check a release folder against its manifest, dvc.lock and signature")
    verify.add_argument("path", metavar="PATH", type=_path, nargs="?", help=f"default: {paths.RELEASE}")
    several((sign, verify), "--signature", metavar="FILE", type=_path, help=f"default: {paths.SIGNATURE} at dvc.yaml")
    gates = command("gates", "show the gates; exit with 1 when they fail")
    gates.add_argument("--strict", action="store_true", help="also exit with 1 when they are MARGINAL")
    review = command("review", "compare answers on a page, without knowing which model gave them")
    review.add_argument("--reviewer", metavar="NAME", required=True, help=f"answers go to {paths.REVIEWS}/NAME.jsonl")
    release = command("release", "tag HEAD as a release, unless something is open")
    release.add_argument("--accept-marginal", metavar="REASON", help="release MARGINAL gates; the tag says why")
    release.add_argument("--sign", action="store_true", help="let git sign the tags")
    release.add_argument("--no-push-check", metavar="REASON", help="do not ask the DVC remote; the tag says why")
    history = command("history", "show which release was live from when to when")
    history.add_argument("--stage", metavar="STAGE", help="of this stage alone, such as prod")
    history.add_argument("--html", metavar="FILE", type=_path, help="write a page instead")
    rollback = command("rollback", "go back to a released version and say what changes")
    rollback.add_argument("--reason", help="why, for the history")
    several((release, rollback), "version", metavar="VERSION", help="MAJOR.MINOR.PATCH")
    several((release, rollback), "--stage", metavar="STAGE", help="assign it to this stage, too, such as prod")
    reproduce = command("reproduce", "make a release again from its inputs alone and compare every output")
    reproduce.add_argument("name", metavar="VERSION", help="or the tag of the release")
    reproduce.add_argument("--key", metavar="PRIVATE.pem", type=_path, help="sign the attestation")
    publish = command("publish", "upload a released version to a model hub, and read it back")
    publish.add_argument("version", metavar="VERSION", help="MAJOR.MINOR.PATCH")
    publish.add_argument("target", metavar="hub:OWNER/NAME", help="made if it is not there, and then private")
    publish.add_argument("--format", action="append", default=[], help="or adapter; default: all formats that ship")
    publish.add_argument("--public", action="store_true", help="let everybody read a repository that this makes")
    serve = command("serve", "answer requests with a release, through its engine")
    serve.add_argument("name", metavar="VERSION|PATH", nargs="?", help=f"default: {paths.RELEASE}; or: current")
    on_base = f"serve this release's adapter on {paths.BASE}, beside others, as the model NAME; again for each"
    serve.add_argument("--adapter", metavar="NAME=VERSION|PATH", action="append", default=[], help=on_base)
    serve.add_argument("--host", default="127.0.0.1", help="another than this machine's own needs an API key")
    serve.add_argument("--context", type=count, default=2048, help="tokens of prompt and answer; default: 2048")
    serve.add_argument("--canary", metavar="VERSION=10%", help="give a share of the requests to this version")
    serve.add_argument("--log", metavar="FILE", type=_path, help=f"a line a request; default: {paths.REQUESTS}")
    serve.add_argument("--log-text", action="store_true", help="what is asked and answered, too, for `collect`")
    switch = command("switch", "let `serve current` go over to a version, without a pause")
    switch.add_argument("name", metavar="VERSION", help="MAJOR.MINOR.PATCH")
    switch.add_argument("--url", help="of `serve current`: wait until it serves that version")
    smoke = command("smoke", "ask a server what it must know and survive; exit with 1 if it fails")
    smoke.add_argument("url", metavar="URL", help="of a server of this release")
    smoke.add_argument("--golden", metavar="ROWS", type=count, default=5, help="of the hold-out; default: 5")
    answer = command("answer", "answer a file of prompts with a release; run again to go on")
    answer.add_argument("source", metavar="IN.jsonl", type=_path, help='rows {"prompt": TEXT}')
    answer.add_argument("target", metavar="OUT.jsonl", type=_path, help="the same rows, each with answer and release")
    answer.add_argument("--url", help="ask a server of this release in place of one that is started for it")
    bases = command("bases", "base models beside each other on your own rows, before the first run")
    bases.add_argument("sources", metavar="CANDIDATE", nargs="+", help="as model.source, or package:...#FILE.gguf")
    bases.add_argument("--rows", type=count, default=50, help="validation rows that each is asked; default: 50")
    bases.add_argument("--shots", type=partial(_number, 0), default=4, help="training rows as examples; default: 4")
    bases.add_argument("--write", metavar="FILE.md|FILE.html", type=_path, help="write a page, too")
    estimate = command("estimate", "seconds, memory, energy and price of the run that params.yaml describes")
    estimate.add_argument("--steps", type=count, default=10, help="optimiser steps that are timed; default: 10")
    several((bases, estimate), "--prices", metavar="FILE.yaml", type=_path, help="yours: what a run and requests cost")
    collect = command("collect", "take from the logs of served requests the rows that are worth annotating")
    collect.add_argument("--limit", type=count, default=100, metavar="ROWS", help="default: 100")
    collect.add_argument("--below", type=float, default=-0.1, help="mean log-probability of a token; default: -0.1")
    collect.add_argument("--week", metavar="NAME", help="default: the ISO week of the latest request")
    annotate = command("annotate", "write on a page what collected rows should have been answered")
    annotate.add_argument("inbox", metavar="WEEK.jsonl", type=_path, help="of `tunetrail collect`")
    annotate.add_argument("--annotator", metavar="NAME", help="answers go to WEEK/NAME.jsonl; default: only count them")
    annotate.add_argument("--with", metavar="NAME", dest="others", action="append", default=[], help="who has a share")
    annotate.add_argument("--overlap", type=partial(_number, 0), default=10, help="rows of all; default: 10")
    several((serve, review, annotate), "--port", type=int, default=0, help="default: a free one")
    why = command("why", "show the training rows that taught an answer, and what may be wrong with them")
    why.add_argument("name", metavar="ROW|PROMPT", help="a row of the hold-out by its id or number, or what to ask")
    why.add_argument("--prompt", action="store_true", help="a prompt, though it looks like an id or a number")
    why.add_argument("--task", metavar="TAG", help="of the prompt, where rows have tags")
    why.add_argument("--rows", type=count, default=10, help="shown of each way; default: 10")
    why.add_argument("--to", metavar="FILE.jsonl", type=_path, help="write what is suggested, for `tunetrail annotate`")
    drift = command("drift", "say whether what is asked is still what was trained on; exit with 1 if not")
    several((collect, drift), "logs", metavar="LOG.jsonl", nargs="+", type=_path, help="requests with their answers")
    append = command("append", "let annotated rows join the raw data, as sources of their own")
    append.add_argument("files", metavar="FILE", nargs="+", type=_path, help="of `tunetrail annotate`, or of `collect`")
    preferences = command("preferences", "take from logs and annotated rows what people preferred")
    preferences.add_argument("logs", metavar="FILE.jsonl", nargs="+", type=_path, help="as of `tunetrail collect`")
    preferences.add_argument("--name", required=True, help=f"rows go to {paths.PREFERENCES}/NAME.jsonl")
    feedback = command("feedback", "let the judge rank two answers a row by written principles; may cost money")
    feedback.add_argument("--principles", metavar="FILE", required=True, type=_path, help="a principle a line")
    feedback.add_argument("--name", required=True, help=f"pairs go to {paths.PREFERENCES}/NAME.jsonl")
    feedback.add_argument("--rows", type=count, default=50, help="of training and validation; default: 50")
    feedback.add_argument("--answers", metavar="FILE", nargs=2, type=_path, default=[], help="default: sampled")
    served = serve, switch, smoke, answer
    several(served, "--unreleased", metavar="WHY", help="take what is unreleased, unsigned or failed its gates")
    several(served, "--engine", choices=["llama.cpp", "transformers", "vllm"], help="default: by what ships")
    keyed = verify, release, rollback, publish, *served
    several(keyed, "--key", metavar="PUBLIC.pem", type=_path, help=f"of whom {paths.SIGNATURE} must be")
    several((serve, smoke, answer), "--api-key-variable", metavar="NAME", help="variable with the server's key")
    several((smoke, answer), "--release", metavar="VERSION|PATH", dest="name", help=f"default: {paths.RELEASE}")
    canary = command("canary", "say whether a canary goes on; exit with 1 if it is to be stopped")
    canary.add_argument("log", metavar="LOG", type=_path, help="of `tunetrail serve --canary`")
    canary.add_argument("--margin", type=float, default=0.02, help="how much worse is no harm; default: 0.02")
    canary.add_argument("--confidence", type=float, default=0.95, help="of all comparisons together; default: 0.95")
    compare = command("compare", "show as Markdown what differs between revisions, or files of answers")
    compare.add_argument("revisions", metavar="REV", nargs="*", help="against the first; one: and the working tree")
    compare.add_argument("--answers", metavar="FILE", nargs="+", type=_path, help="of any tool, to the hold-out")
    compare.add_argument("--format", choices=["md", "txt", "html"], default="md", help="txt: for a terminal")
    gc = command("gc", "list what DVC's cache holds that nothing here needs; it removes nothing")
    gc.add_argument("--dry", action="store_true", required=True, help="list; there is nothing else that it does")
    gc.add_argument("--remote", metavar="NAME", help="list what this remote holds, too")
    merge_lock = command("merge-lock", "after a git merge, take of each branch's dvc.lock what holds")
    merge_lock.add_argument("revisions", metavar="REV", nargs="*", help="default: those that git is merging")
    sweep = command("sweep", "search parameters of training by their loss on validation rows; run again to go on")
    sweep.add_argument("path", metavar="sweep.yaml", type=_path, help="docs/experiments.md")
    lock_check = command("lock-check", "check that dvc.lock belongs to this code, data and parameters")
    lock_check.add_argument("--deep", action="store_true", help="hash the working tree and DVC's cache, too")
    doctor = command("doctor", "check machine and project, and heal damaged objects; exit with 1 for a problem")
    several((trace, history, estimate, why, drift, doctor), "--json", action="store_true", help="print JSON, one value")
    check = command("check", "show what cleaning would do with a file; exit with 2 when it is unfit", data)
    check.add_argument("path", metavar="FILE", type=_path, help="a file, a data set saved on disk, or a folder of them")
    check.add_argument("--strict", action="store_true", help="one rejected row makes it unfit")
    command("params", "print every parameter with its value, default and meaning")
    command("preflight", "check a training run before it starts; exit with 2 for a problem")
    draw = command("draw", "draw the hold-out, or take a source for it, and write its lock", holdout)
    draw.add_argument("--redraw", action="store_true", help="replace the lock that is there")
    draw.add_argument("--source", metavar="NAME", help="lock all rows of a source, such as a published test set")
    draw.add_argument("--add", metavar="NAME", help="lock a slice of this source, too; what is locked stays")
    return top


def _number(least: int, text: str) -> int:
    try:
        found = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if found < least:
        raise argparse.ArgumentTypeError(f"{text} is less than {least}")
    return found


def _path(text: str) -> Path:
    """A path as seen from where the user stands, which need not be the repository's root."""
    if text.encode(errors="replace").decode() != text:  # it goes into rows and sentences
        raise argparse.ArgumentTypeError(f"the name {text!r} is no UTF-8; rename the file")
    return Path(text).absolute()


def _in_root(options: commands.Options) -> None:
    """Call the subcommand in the repository's root; its own paths count from where the user stands."""
    from stages.core.git import find_root

    start = Path.cwd()
    try:
        root = find_root(start)
    except UserError:
        if options.call is not commands.verify or not options.path:
            raise
        root = start  # a release folder can be checked where there is no repository
    os.chdir(root)
    options.call(options, root, start)


if __name__ == "__main__":
    main()
