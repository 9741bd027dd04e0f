"""benchmarks/loop.py: every second of a process is booked once, on import, load or work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

LOOP = Path(__file__).parents[2] / "benchmarks" / "loop.py"
FILES = {
    "stages/__init__.py": "",  # of a regular package, so that it is found before the repository's
    "stages/model/__init__.py": "",
    "stages/tune/__init__.py": "",
    "stages/model/loading.py": """
        import time
        def load_model():
            time.sleep(0.2)
            import slow
            return slow
        """,
    "slow.py": "import time; time.sleep(0.3)",
    "stages/tune/__main__.py": """
        import sys, threading, time
        from stages.model.loading import load_model
        load_model()
        thread = threading.Thread(target=lambda: __import__("slower"))
        thread.start()
        time.sleep(0.1)
        thread.join()
        print(sys.argv[1:], __name__)
        """,
    "slower.py": "import time; time.sleep(0.4)",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        lines = text.strip("\n").splitlines() or [""]
        indent = len(lines[0]) - len(lines[0].lstrip())
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("\n".join(line[indent:] for line in lines), encoding="utf-8")
    return tmp_path


def test_imports_within_a_load_and_the_work_of_threads_are_booked_once(project: Path) -> None:
    command = [sys.executable, str(LOOP), "--run", "seconds.json", "stages.tune", "--an-argument"]
    done = subprocess.run(command, cwd=project, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "['--an-argument'] __main__"
    seconds = json.loads((project / "seconds.json").read_text(encoding="utf-8"))
    assert set(seconds) == {"import", "load"}
    assert seconds["load"] >= 0.2
    assert seconds["import"] >= 0.3


def test_what_a_stage_ended_with_is_what_the_process_ends_with(project: Path) -> None:
    (project / "stages" / "tune" / "__main__.py").write_text("raise SystemExit(2)", encoding="utf-8")
    command = [sys.executable, str(LOOP), "--run", "seconds.json", "stages.tune"]
    assert subprocess.run(command, cwd=project, check=False).returncode == 2
    assert (project / "seconds.json").exists()
