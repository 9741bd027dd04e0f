"""Take the pictures of docs/: the report's page and the blind review, as the last run of this checkout made them.

    python docs/screenshots.py

writes docs/images/report.png and review.png. It needs Chromium with its driver.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser import look, open_file, start_chromium  # noqa: E402

IMAGES = ROOT / "docs" / "images"


def main() -> None:
    report = ROOT / "metrics" / "report.html"
    if not report.exists():
        sys.exit(f"{report} is missing; run `make repro` first")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        browser = start_chromium(Path(profile))
        try:
            look(browser, 1200, 1100)
            open_file(browser, report)
            browser.save_screenshot(str(IMAGES / "report.png"))
            command = [sys.executable, "-u", "-m", "stages.cli", "review", "--reviewer", "screenshots"]
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
                try:
                    assert server.stdout is not None
                    address = next(m[0] for line in server.stdout if (m := re.search(r"http://\S+", line)))
                    look(browser, 1200, 700)
                    browser.get(address)
                    browser.save_screenshot(str(IMAGES / "review.png"))
                finally:
                    server.terminate()
        finally:
            browser.quit()
    (ROOT / "reviews" / "screenshots.jsonl").unlink(missing_ok=True)
    print(*sorted(IMAGES.glob("*.png")), sep="\n")


if __name__ == "__main__":
    main()
