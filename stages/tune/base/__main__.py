"""base: the base model as safetensors, tokenizer and chat template, so that the trail needs no hub."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stages.core import paths
from stages.core.errors import run
from stages.core.files import atomic
from stages.core.run_notes import measured
from stages.params.loader import load_params
from stages.tune.base.model_source import fetch, read_template


def main() -> None:
    model = load_params("model").model
    template = read_template(Path(model.chat_template))
    with measured("base"), tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(1) as beside:
        print(f"fetching {model.source}")
        fetched = beside.submit(fetch, model, Path(scratch))
        from stages.tune.base.base_model import materialise  # late: seconds of imports, while it is fetched

        source = fetched.result()
        with atomic(paths.BASE) as folder:
            materialise(source, folder, model.dtype, template)
    print(f"wrote {paths.BASE} in {model.dtype}")


if __name__ == "__main__":
    run(main)
