"""sweep: search parameters of training with Optuna; each trial is a DVC experiment that runs up to the stage train.

The hold-out is not looked at: no trial runs a stage that measures on it, and what is minimised is a loss on validation
rows. Optuna's study lies in .tunetrail/sweeps/NAME, in SQLite, which no kill tears.
"""

import itertools
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from stages.core import paths
from stages.core.dvc_lock import locked_bytes
from stages.core.errors import Refusal, UserError
from stages.core.files import alone, remove
from stages.core.git import CommitTree, Repository
from stages.core.yaml_reader import load_yaml
from stages.params.loader import check_params, read_params
from stages.params.section import Few, Section, Seed
from stages.team.sweep_page import write_page

OBJECTIVES = ("validation_best", "validation_last")  # of `loss` in metrics/train.json
SWEEPS = Path(".tunetrail/sweeps")
_COPIES = "standalone"  # DVC's folder of them
_CURVE = paths.CURVES / "plots/metrics/validation/loss.tsv"
_STAGE = "train"
_TAKEN = "Reproducing experiment"  # what `dvc exp run` prints when it has taken its experiment from the waiting ones
_COMPARABLE = ("train", "augment")
# Trials differ in which validation rows they count, or in what a step of the curve is.
_OTHER_ROWS, _OTHER_STEPS = ("train.max_tokens",), ("train.batch_size", "train.epochs", "augment")


class Range(Section):
    """Numbers from `low` to `high`; with `log` each power of ten is as likely."""

    low: int | float
    high: int | float
    step: Annotated[int | float, Field(gt=0)] | None = None
    log: bool = False

    def values(self) -> list[int | float]:
        step = self.step or 0
        return [self.low + i * step for i in range(math.floor((self.high - self.low) / step + 1e-9) + 1 if step else 0)]


class Stop(Section):
    """The sweep ends when `patience` finished trials in a row made the best better by no more than `noise`.

    `noise` is what another seed alone changes.
    """

    noise: Annotated[float, Field(ge=0)]
    patience: Few


class Sweep(Section):
    """sweep.yaml."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    parameters: Annotated[dict[str, Range | list[bool | int | float | str | None]], Field(min_length=1)]
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    trials: Few
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    objective: str = OBJECTIVES[0]
    prune: bool = True
    seed: Seed = 17
    stop: Stop | None = None


class TrialFailedError(Exception):
    """A trial that has no value; the sweep goes on with the others."""


def read_sweep(path: Path) -> Sweep:
    """sweep.yaml, checked against the schema of params.yaml. Raises UserError naming key, value and what is allowed."""
    try:
        spec = Sweep.model_validate(load_yaml(path.read_bytes()))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, one['loc']))}: {one['msg'].lower()}" for one in error.errors()]
        raise UserError("\n  ".join([f"{path}:", *lines])) from None
    except ValueError as error:
        raise UserError(f"{path}: not YAML: {error}") from None
    if spec.objective not in OBJECTIVES:
        raise UserError(
            f"{path}: objective: {spec.objective!r}: a sweep chooses by {' or '.join(OBJECTIVES)}, losses on "
            "validation rows, never by the hold-out: rows that choose a model no longer tell how good it is"
        )
    for key, domain in spec.parameters.items():
        if said := _obstacle(spec, key, domain):
            raise UserError(f"{path}: {key}: {said}")
        for value in [domain.low, domain.high, *domain.values()[:2]] if isinstance(domain, Range) else domain:
            values = below = read_params()
            for part in key.split(".")[:-1]:
                if not isinstance(below.get(part), dict):
                    below[part] = {}
                below = below[part]
            below[key.rpartition(".")[2]] = value
            check_params(values, path)
    return spec


def _obstacle(spec: Sweep, key: str, domain: Any) -> str | None:
    """Why a parameter cannot be swept; None where it can."""
    if key.partition(".")[0] not in _COMPARABLE or key in _OTHER_ROWS:
        return (
            f"only parameters of {' and '.join(_COMPARABLE)} can be swept, but for {_OTHER_ROWS[0]}; others change the "
            "validation rows, so that trials do not compare, or nothing that is trained"
        )
    if spec.prune and key.startswith(_OTHER_STEPS):
        return "a step of one trial would not be a step of another, by which they are pruned; write prune: false"
    if not isinstance(domain, Range):
        return None if domain else "a list needs values"
    if domain.low >= domain.high or (domain.log and domain.step):
        return "low must be below high, and only one of step and log can be given"
    if spec.sampler == "grid" and not domain.step:
        return "a grid needs a list, or low, high and step"
    return None


def sweep(root: Path, path: Path) -> str:
    """Run what is left of the trials that `path` asks for, and write the page. `root` is the current folder.

    Raises UserError for a mistake in the file, or when the first trial fails; Refusal when a tracked file is changed,
    or the name belongs to another sweep or to one that is still at work.
    """
    spec, repository = read_sweep(path), Repository(root)
    if repository.git("status", "--porcelain", "--untracked-files=no"):
        raise Refusal("files that git tracks are changed; commit them first: the trials are experiments of a commit")
    try:
        import optuna
    except ImportError:
        raise UserError("optuna is not installed; install the extra: pip install 'tunetrail[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = root / SWEEPS / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lock").touch()
    with alone(folder / "lock") as lock:
        if lock is None:
            raise Refusal(f"{spec.name}: this sweep, or a trial that a killed one left, is at work; wait for its end")
        search = Search(spec, repository, folder, lock)
        search.recover()
        search.run()
        page = write_page(folder / "sweep.html", spec.name, spec.objective, search.study, spec.seed)
        return search.said(page.relative_to(root))


class Search:
    """A sweep at work."""

    def __init__(self, spec: Sweep, repository: Repository, folder: Path, lock: int) -> None:
        import optuna

        self.spec, self.repository, self.folder, self.lock = spec, repository, folder, lock
        self.commit = repository.git("rev-parse", "HEAD")
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
        never = optuna.pruners.NopPruner()
        self.study = optuna.create_study(storage=storage, study_name=spec.name, pruner=never, load_if_exists=True)
        seed = spec.seed + len(self.study.trials)  # one that goes on draws what has not been drawn
        tpe = optuna.samplers.TPESampler(seed=seed, constant_liar=spec.workers > 1)
        self.study.sampler = tpe if spec.sampler == "tpe" else optuna.samplers.RandomSampler(seed=seed)
        if spec.prune:
            self.study.pruner = optuna.pruners.MedianPruner(n_startup_trials=3)
        of = {"commit": self.commit, **spec.model_dump(mode="json", exclude={"trials", "workers", "stop"})}
        if self.study.user_attrs.get("of", of) != of:
            raise Refusal(f"{spec.name} is a sweep of another commit or of other settings; give this one another name")
        self.study.set_user_attr("of", of)
        if spec.sampler == "grid":
            lists = {key: one.values() if isinstance(one, Range) else one for key, one in spec.parameters.items()}
            for point in itertools.product(*lists.values()):
                self.study.enqueue_trial(dict(zip(lists, point, strict=True)), skip_if_exists=True)
        self.states = optuna.trial.TrialState
        self.pruned = optuna.TrialPruned
        self.free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for settings in _shares(spec.workers):
            self.free.put(settings)
        self.asking, self.starting, self.ending = threading.Lock(), threading.Lock(), threading.Event()

    def recover(self) -> None:
        """Take over what a killed sweep left: a finished experiment counts, an unfinished trial is asked again."""
        waiting = [trial.system_attrs.get("fixed_params") for trial in self._trials("WAITING")]
        for trial in self._trials("RUNNING"):
            try:
                self.study.tell(trial.number, self.value(trial.number))
            except TrialFailedError:
                given = trial.system_attrs.get("fixed_params", trial.params)  # of a grid, also before they were asked
                if len(given) == len(self.spec.parameters) and given not in waiting:
                    self.study.enqueue_trial(given)
                self.study.set_user_attr("killed", sorted({*self.study.user_attrs.get("killed", []), trial.number}))
                self.study.tell(trial.number, state=self.states.FAIL)

    def run(self) -> None:
        with ThreadPoolExecutor(self.spec.workers) as pool:
            try:
                for job in as_completed([pool.submit(self._work) for _ in range(self.spec.workers)]):
                    job.result()
            except BaseException:
                self.ending.set()
                raise

    def _work(self) -> None:
        while True:
            with self.asking:
                waiting, killed = self._trials("WAITING"), self.study.user_attrs.get("killed", [])
                started = len(self.study.trials) - len(waiting) - len(killed)
                done = started >= self.spec.trials or (self.spec.sampler == "grid" and not waiting)
                if self.ending.is_set() or done or settled(self.study.trials, self.spec.stop):
                    return
                trial = self.study.ask()
                values = {key: _suggest(trial, key, domain) for key, domain in self.spec.parameters.items()}
            try:
                value = self._measure(trial, values)
                self.study.tell(trial, value)
                said = f"{self.spec.objective} {value:.6g}  {values}"
            except self.pruned:
                self.study.tell(trial, state=self.states.PRUNED)
                said = "pruned, worse than the median of the others"
            except TrialFailedError as error:
                self.study.tell(trial, state=self.states.FAIL)
                if not self._trials("COMPLETE", "PRUNED"):
                    raise UserError(f"the first trial failed: {error}") from None
                said = str(error)
            print(f"{self.experiment(trial.number)}: {said}", flush=True)

    def _trials(self, *states: str) -> list[Any]:
        return [trial for trial in self.study.trials if trial.state.name in states]

    def experiment(self, number: int) -> str:
        return f"{self.spec.name}-{number}"

    def _measure(self, trial: Any, values: Mapping[str, Any]) -> float:
        """Run a trial as an experiment in a copy, and report its curve while it trains."""
        name = self.experiment(trial.number)
        changes = [part for key, value in values.items() for part in ("-S", f"++{key}={json.dumps(value)}")]
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "exp", "run", "--temp", "--name", name]
        command += [*changes, _STAGE]
        settings, log = self.free.get(), self.folder / f"{name}.log"
        try:
            with log.open("w") as stream:
                with self.starting:
                    process = subprocess.Popen(
                        command,
                        cwd=self.repository.root,
                        env=os.environ | settings | {"PYTHONUNBUFFERED": "1"},
                        stdout=stream,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        pass_fds=[self.lock],  # a trial that outlives its sweep holds the lock, too
                    )
                    # DVC gives an experiment that waits to whichever process asks first: until this one has taken
                    # its own, no other may ask.
                    while (
                        not self.ending.is_set()
                        and process.poll() is None
                        and _TAKEN not in log.read_text(errors="replace")
                    ):
                        time.sleep(0.2)
                copies = set[Path]()
                try:
                    self._watch(process, trial, copies)
                finally:
                    _end(process, copies)
        finally:
            self.free.put(settings)
        if process.returncode:
            said = log.read_text(errors="replace").strip().splitlines()[-5:]
            raise TrialFailedError(
                "\n  ".join([f"dvc exp run failed; {SWEEPS / self.spec.name / log.name} ends with", *said])
            )
        value = self.value(trial.number)
        self._report(trial, (self._tree(name).read(_CURVE.as_posix()) or b"").decode())
        return value

    def _watch(self, process: "subprocess.Popen[bytes]", trial: Any, copies: set[Path]) -> None:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            if self.ending.is_set():
                raise KeyboardInterrupt
            self._report(trial, _curve_of(process.pid, copies))
            if trial.should_prune() and process.poll() is None:
                raise self.pruned

    def _report(self, trial: Any, curve: str) -> None:
        known = self.study.trials[trial.number].intermediate_values
        for line in curve.splitlines()[1:]:
            with suppress(ValueError):  # the line that is being written
                step, loss = line.split("\t")
                if int(step) not in known:
                    trial.report(float(loss), int(step))

    def _tree(self, experiment: str) -> CommitTree:
        commit = self.repository.resolve(f"refs/exps/{self.commit[:2]}/{self.commit[2:]}/{experiment}")
        if commit is None:
            raise TrialFailedError("DVC has no experiment of that name")
        return CommitTree(self.repository, commit)

    def value(self, number: int) -> float:
        """The objective of a finished experiment."""
        tree = self._tree(self.experiment(number))
        metrics = locked_bytes(self.repository.root, tree, paths.TRAIN_METRICS.as_posix())
        loss = json.loads(metrics or b"{}").get("loss", {})
        if not math.isfinite(value := loss.get(self.spec.objective, math.nan)):
            raise TrialFailedError(f"no loss on validation rows in {paths.TRAIN_METRICS}: see train.evaluate_every")
        return float(value)

    def said(self, page: Path) -> str:
        if not (finished := self._trials("COMPLETE")):
            return f"no trial has finished; {page}"
        best = self.study.best_trial
        stopped = f", ended early by {self.spec.stop!r}" if settled(self.study.trials, self.spec.stop) else ""
        return (
            f"{len(finished)} of {len(self.study.trials)} trials have a value{stopped}: {page}\n"
            f"best: {self.spec.objective} {best.value:.6g} with {best.params}\n"
            f"dvc exp apply {self.experiment(best.number)}"
        )


def settled(trials: Sequence[Any], stop: Stop | None) -> bool:
    """Whether what is left cannot matter, by the rule of `Stop`."""
    finished = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    finished.sort(key=lambda trial: trial.datetime_complete)
    if stop is None or len(finished) <= stop.patience:
        return False
    values = [trial.value if trial.state.name == "COMPLETE" else math.inf for trial in finished]
    before = min(values[: -stop.patience])
    return math.isfinite(before) and before - min(values) <= stop.noise


def _suggest(trial: Any, key: str, domain: Any) -> Any:
    if not isinstance(domain, Range):
        return trial.suggest_categorical(key, domain)
    if isinstance(domain.low, int) and isinstance(domain.high, int) and not isinstance(domain.step, float):
        return trial.suggest_int(key, domain.low, domain.high, step=domain.step or 1, log=domain.log)
    return trial.suggest_float(key, domain.low, domain.high, step=domain.step, log=domain.log)


def _shares(workers: int) -> Iterator[dict[str, str]]:
    """For each worker the environment that gives it a card of its own, or its share of the cores."""
    import torch

    cards = torch.cuda.device_count()
    if workers > 1 and 0 < cards < workers:
        raise UserError(f"workers: {workers}, but this machine has {cards} card{'s' * (cards > 1)}: one worker a card")
    threads = max((os.cpu_count() or 1) // workers, 1)
    for number in range(workers):
        if cards:
            yield {"CUDA_VISIBLE_DEVICES": str(number)} if workers > 1 else {}
        else:
            yield {"OMP_NUM_THREADS": str(threads)}


def _curve_of(pid: int, copies: set[Path]) -> str:
    """The validation curve of the stage that runs below a process of DVC, as far as it is; DVC removes the last one.

    The copy of the project that the stage runs in is added to `copies`.
    """
    import psutil

    with suppress(psutil.Error, OSError):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error, OSError):
                if child.environ().get("DVC_STAGE") == _STAGE:
                    folder = Path(child.cwd())
                    copies |= {place for place in (folder, *folder.parents) if place.parent.name == _COPIES}
                    return (folder / _CURVE).read_text(encoding="utf-8")
    return ""


def _end(process: "subprocess.Popen[bytes]", copies: set[Path]) -> None:
    """Interrupt DVC and its stage as Ctrl-C does, so that DVC removes its copy; kill what does not end.

    A stage that outlives DVC for a moment writes on into the copy that DVC is removing, and some of it stays.
    """
    if process.poll() is not None:
        return
    for how, seconds in ((signal.SIGINT, 30), (signal.SIGKILL, None)):
        if process.poll() is None:
            os.killpg(process.pid, how)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for copy in copies:
        remove(copy)
