"""What is looked at before weights are used, and how quietly they are read."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from project import ROOT
from tiny_model import save_tiny_model

from stages.core.errors import Refusal
from stages.core.files import write_json
from stages.model import loading
from stages.model.loading import compute_dtype, refuse_not_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_weight_that_is_no_finite_number_is_found_wherever_it_stands(dtype: torch.dtype, bad: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((1,), (3, 7), (64, 129)):
        weights = torch.randn(shape, generator=generator).to(dtype)
        sound = {"whole": weights.clone(), "none": weights[:0], "counts": torch.tensor([1, 2])}
        refuse_not_finite(sound, "the model")
        for place in {0, weights.numel() // 2, weights.numel() - 1}:
            broken = weights.clone()
            broken.view(-1)[place] = bad
            with pytest.raises(Refusal, match="the model holds NaN or infinity in layer;"):
                refuse_not_finite({**sound, "layer": broken}, "the model")


def test_reading_and_writing_weights_prints_nothing_whatever_was_imported_before(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    program = (
        "import sys, tqdm; from pathlib import Path; from stages.model.loading import load_model;"
        "load_model(Path(sys.argv[1])).save_pretrained(sys.argv[2])"
    )
    command = [sys.executable, "-c", program, str(model), str(tmp_path / "saved")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "saved" / "model.safetensors").is_file()


_FINDS = loading.cpu_has_bfloat16  # which tests have replaced


@pytest.mark.parametrize(
    ("stored", "flags", "computed"),
    [
        ("bfloat16", "fpu avx512f avx512_bf16 sse", torch.bfloat16),
        ("bfloat16", "amx_bf16", torch.bfloat16),
        ("bfloat16", "fpu avx512f avx512_bf16_not_really", torch.float32),
        ("float16", "avx512_bf16", torch.float32),
        ("float32", "avx512_bf16", torch.float32),
        (None, "avx512_bf16", torch.float32),
    ],
)
def test_a_cpu_computes_in_16_bit_where_it_can_and_nothing_is_lost(
    stored: str | None, flags: str, computed: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stored:
        write_json(tmp_path / "config.json", {"dtype": stored})
    monkeypatch.setattr(loading, "_CPU", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"processor: 0\nflags: {flags}\n")
    monkeypatch.setattr(loading, "cpu_has_bfloat16", _FINDS.__wrapped__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert compute_dtype(tmp_path) == computed
