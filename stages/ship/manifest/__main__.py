"""manifest: hashes of every file that ships and of all that made it, and the model card.

A stage of its own, so that a changed parameter or comment upstream that leaves the weights as they are costs a
second here and not another round of merging, quantising and judging.
"""

from stages.core import paths
from stages.core.errors import run
from stages.core.files import write_json, write_text
from stages.params.loader import load_params
from stages.ship.manifest.build import build_manifest
from stages.ship.manifest.model_card import model_card


def main() -> None:
    # fmt: off
    params = load_params(
        "augment", "checks", "clean", "dedup", "evaluate", "gates", "generation", "holdout", "judge", "model",
        "probes", "quantize", "review", "scoring", "seed", "split", "task", "train",
    )
    # fmt: on
    manifest = build_manifest(params)
    write_json(paths.MANIFEST, manifest)
    write_text(paths.MODEL_CARD, model_card(params, manifest))
    print(f"wrote {paths.MANIFEST}: {len(manifest['files'])} files that ship")


if __name__ == "__main__":
    run(main)
