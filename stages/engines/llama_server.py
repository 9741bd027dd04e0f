"""llama.cpp's own HTTP server, of the package xllamacpp, in a process of its own.

It ends when standard input does, so that it never outlives who started it.
"""

import json
import os
import sys
from typing import Any

KEY_VARIABLE = "LLAMA_API_KEY"  # llama.cpp's own name for it; arguments can be read by every user of the machine


def parameters(settings: dict[str, Any]) -> Any:
    """The server's parameters of what `stages.engines.engine_server` says; `context` is the tokens of one slot."""
    import xllamacpp

    found = xllamacpp.CommonParams()
    found.model.path = settings["model"]
    found.model_alias = {settings["name"]}
    found.hostnames, found.port = [settings["host"]], settings["port"]
    found.n_parallel = settings["slots"]
    found.n_ctx = settings["slots"] * settings["context"]
    found.cpuparams.n_threads = found.cpuparams_batch.n_threads = settings["threads"]
    # Nothing is cut, moved or warmed up unasked, and no slot sees what another one keeps.
    found.ctx_shift, found.cache_ram_mib, found.warmup, found.ui = False, 0, False, False
    found.use_jinja = True
    found.api_keys = [key] if (key := os.environ.get(KEY_VARIABLE)) else []
    # Each request says which adapter answers it; one that says nothing is answered by the model without any.
    found.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in settings.get("adapters", ())]
    return found


def main() -> None:
    import xllamacpp

    try:
        server = xllamacpp.Server(parameters(json.loads(sys.argv[1])))
    except RuntimeError:  # llama.cpp has said why
        raise SystemExit(1) from None
    sys.stdin.read()
    del server


if __name__ == "__main__":
    main()
