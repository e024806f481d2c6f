"""Write the committed benchmarks into the tables of data/results/README.md.

    python tests/benchmarks/report.py

Each stands between `<!-- NAME -->` and `<!-- /NAME -->` and is made by `bench_NAME.table` from
`data/results/bench-NAME.json`. A benchmark that writes that file calls this by itself.
"""

import json
from importlib import import_module
from pathlib import Path

import harness

NAMES = ("step", "views", "scale", "memory", "processes", "lesson")


def section(name: str, results: Path = harness.RESULTS) -> str:
    """The table of one committed benchmark, as Markdown."""
    report = json.loads((results / f"bench-{name}.json").read_text(encoding="utf-8"))
    return import_module(f"bench_{name}").table(report)


def fill(results: Path = harness.RESULTS) -> None:
    """Replace what stands between the markers of `results`/README.md.

    Raises:
        ValueError: a marker is missing.
    """
    page = results / "README.md"
    text = page.read_text(encoding="utf-8")
    for name in NAMES:
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"{page} must have the lines {start} and {end} once each")
        before, after = text.split(start)[0], text.split(end)[1]
        text = f"{before}{start}\n{section(name, results)}\n{end}{after}"
    page.write_text(text, encoding="utf-8")
    print(f"tables written: {page}")


if __name__ == "__main__":
    fill()
