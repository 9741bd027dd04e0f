"""report: one page that says whether this model may ship, and shows what that rests on."""

from stages.core import paths
from stages.core.errors import run
from stages.core.files import write_text
from stages.params.loader import load_params
from stages.records.contract import Tasks
from stages.report.inputs import read_inputs
from stages.report.page import render, view


def main() -> None:
    params = load_params("gates", "report", "scoring", "task")
    inputs = read_inputs(params.report.examples)
    shown = view(inputs, params, Tasks(params.task))
    write_text(paths.REPORT_HTML, render("report.html.j2", shown))
    write_text(paths.REPORT_MARKDOWN, render("report.md.j2", shown))
    print(f"{shown['verdict'].state}: {shown['verdict'].sentence} See {paths.REPORT_HTML}")


if __name__ == "__main__":
    run(main)
