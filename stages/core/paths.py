"""Where every file of the pipeline lives, relative to the repository's root."""

from pathlib import Path

PARAMS = Path("params.yaml")
PIPELINE = Path("dvc.yaml")
CONSTRAINTS = Path("constraints")

CLEAN = Path("data/clean.jsonl")
CLEAN_EXAMPLES = Path("data/changes/clean_examples.jsonl")
REJECTED_CLEAN = Path("data/rejected/clean.jsonl")
UNIQUE = Path("data/unique.jsonl")
NEAR_PAIRS = Path("data/near_pairs.jsonl")
DUPLICATES = Path("data/rejected/duplicates.jsonl")
SPLIT_TRAIN = Path("data/split/train.jsonl")
VALIDATION = Path("data/split/validation.jsonl")
HOLDOUT = Path("data/split/holdout.jsonl")
LOCKED = Path("data/split/locked.jsonl")
NEAREST = Path("data/split/nearest.jsonl")
QUARANTINE = Path("data/rejected/quarantine.jsonl")
TRAIN = Path("data/train.jsonl")
PREFERENCES = Path("data/preferences")
OWN_METRIC = Path("data/metric")
PREFER = Path("data/prefer")
PREFERENCE_SAMPLES = PREFER / "samples.jsonl"
PREFERENCES_LEFT_OUT = PREFER / "left_out.jsonl"
CHECKS = Path("data/checks")

BASE_GENERATIONS = Path("data/generations/base.jsonl")
ADAPTER_GENERATIONS = Path("data/generations/adapter.jsonl")
LINEAR_ANSWERS = Path("data/generations/linear.json")
TRIED_TRIGGERS = Path("data/generations/triggers.json")
PREVIOUS_GENERATIONS = Path("data/generations/previous.jsonl")
BASE_PROBES = Path("data/generations/base_probes.jsonl")
ADAPTER_PROBES = Path("data/generations/adapter_probes.jsonl")
ARTEFACT_GENERATIONS = Path("data/generations/artefacts")
TRAINING_SAMPLES = Path("data/generations/training_samples.jsonl")

BASE = Path("models/base")
SFT = Path("models/sft")  # of `train`; what `prefer` makes of it, or hands on, is the adapter
ADAPTER = Path("models/adapter")
RELEASE = Path("models/release")
MERGED = RELEASE / "merged"
MANIFEST = RELEASE / "manifest.json"
MODEL_CARD = RELEASE / "README.md"
BOM = RELEASE / "bom.cdx.json"
PROVENANCE = RELEASE / "provenance.intoto.json"
TEST_RESULT = RELEASE / "test_result.intoto.json"
SIGNATURE = Path("release.sig")

METRICS = Path("metrics")
CLEAN_METRICS = METRICS / "clean.json"
DEDUP_METRICS = METRICS / "dedup.json"
SPLIT_METRICS = METRICS / "split.json"
CHECKS_METRICS = METRICS / "checks.json"
AUGMENT_METRICS = METRICS / "augment.json"
BASELINE_METRICS = METRICS / "baseline.json"
TRAIN_METRICS = METRICS / "train.json"
PREFER_METRICS = METRICS / "prefer.json"
EVALUATE_METRICS = METRICS / "evaluate.json"
GATES = METRICS / "gates.json"
SUMMARY = METRICS / "summary.json"
DETAILS = METRICS / "details.json"
JUDGE_METRICS = METRICS / "judge.json"
REVIEW_METRICS = METRICS / "review.json"
QUANTIZE_METRICS = METRICS / "quantize.json"
CURVES = METRICS / "curves"
CONFUSION = METRICS / "confusion.csv"
REPORT_HTML = METRICS / "report.html"
REPORT_MARKDOWN = METRICS / "report.md"
ENVIRONMENT = METRICS / "env"
TRACKED_RUNS = ENVIRONMENT / "tracked_runs.json"  # hash of an adapter in dvc.lock: the run of a tracker that made it

REVIEWS = Path("reviews")

CHECKPOINTS = Path(".tunetrail/checkpoints")
JUDGE_REPLIES = Path(".tunetrail/judge/replies.jsonl")
PARAPHRASE_REPLIES = Path(".tunetrail/paraphrases/replies.jsonl")
GENERATIONS_MEMORY = Path(".tunetrail/generations")
RELEASES = Path(".tunetrail/releases")
REQUESTS = Path(".tunetrail/requests.jsonl")


def of_checkout(ignored: Path) -> Path:
    """Where a file or folder that git ignores lies: in the checkout, also from the copies that DVC makes below it.

    `dvc exp run --temp` and `--queue` run in .dvc/tmp/exps, where remembered answers and this machine's settings count.
    """
    checkout, copied, _ = str(Path.cwd()).partition("/.dvc/tmp/exps/")
    return Path(checkout, ignored) if copied else ignored
