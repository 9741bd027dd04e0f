"""Names for callers that have not moved yet: import from the modules (`loader`, `clean`, `train` ...)."""

from stages.params.augment import Augment, Checks
from stages.params.clean import Clean, PersonalData, Shape, Source
from stages.params.evaluate import Evaluate, Probes, Report, Scoring
from stages.params.gates import Gate
from stages.params.judge import Judge, Price, Review
from stages.params.loader import Params, check_params, load_params, read_params
from stages.params.model import Generation, Model
from stages.params.split import Dedup, Holdout, Split
from stages.params.task import Task, TaskContract
from stages.params.train import Train

__all__ = [
    "Augment",
    "Checks",
    "Clean",
    "Dedup",
    "Evaluate",
    "Gate",
    "Generation",
    "Holdout",
    "Judge",
    "Model",
    "Params",
    "PersonalData",
    "Price",
    "Probes",
    "Report",
    "Review",
    "Scoring",
    "Shape",
    "Source",
    "Split",
    "Task",
    "TaskContract",
    "Train",
    "check_params",
    "load_params",
    "read_params",
]
