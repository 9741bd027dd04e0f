"""Write the trained weights so that the same weights give the same bytes."""

from pathlib import Path
from typing import Any

from stages.core.files import read_json, write_json

_ADAPTER_CONFIG = "adapter_config.json"


def save_adapter(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save adapter weights, or all weights with the tokenizer where all were trained, as safetensors."""
    model.save_pretrained(folder)
    config = folder / _ADAPTER_CONFIG
    if not config.is_file():
        tokenizer.save_pretrained(folder)
        return
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card; the release writes a real one
    # PEFT keeps module names in sets, whose order changes from run to run.
    settings = read_json(config)
    write_json(config, {key: sorted(v) if _is_names(v) else v for key, v in sorted(settings.items())})


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
