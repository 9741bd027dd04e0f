"""The pipeline: one stage, one room."""

import logging
import os
import warnings

# The stages show progress of their own. Set before a library is imported, for that is when they read it.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning)
