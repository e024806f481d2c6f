"""One, two and four real processes on a CPU: how far their losses, gradients and weights lie apart.

    ssl-lessons bench processes [--json FILE]

What tests/test_distributed.py checks, as a table: an epoch of each method on one, two and four gloo processes
with the same global batch, in float64 (but for the loss), so that what is left is no network's rounding.
"""

import sys
import tempfile
from pathlib import Path

import harness

from ssl_lessons.batch import leaderboard

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from in_processes import METHODS, NORMS, compared, difference, ends  # noqa: E402  (of the tests' folder)

NORMALISATIONS = {"group": "GroupNorm", "batch": "BatchNorm"}


def table(report: dict) -> str:
    rows = []
    for row in report["rows"]:
        numbers = [f"{row[name]:.0e}" if row[name] else "0" for name in ("loss", "gradient", "state")]
        rows.append(
            (
                leaderboard.title(row["method"]),
                NORMALISATIONS[row["normalisation"]],
                row["processes"],
                *numbers,
            )
        )
    heads = ("method", "normalisation", "processes", "loss", "gradients", "weights and buffers")
    text = (
        "Largest difference from one process with the same global batch of 8, noise of 20 px, three steps: "
        "of the epoch's loss; of the gradients, as a share of the largest; of weights, BatchNorm's "
        "statistics and MoCo's queue afterwards. gloo, Conv4 of 4 to 8 channels, seed 0. "
        f"{harness.where(report)}"
    )
    return f"{text}\n\n{harness.table(heads, rows)}"


def main(argv=None) -> int:
    args = harness.options(__doc__.splitlines()[0]).parse_args(argv)
    report = {"machine": harness.machine("cpu"), "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        compared(folder)
        for kind in METHODS:
            for norm, sizes in NORMS.items():
                name = f"{kind.__name__}-{norm}"
                (alone,) = ends(Path(folder), name, "1", 1)
                for size in sizes[1:]:
                    apart = [difference(alone, end) for end in ends(Path(folder), name, str(size), size)]
                    worst = {part: max(one[part] for one in apart) for part in apart[0]}
                    row = {"method": kind.__name__, "normalisation": norm, "processes": size, **worst}
                    report["rows"].append(row)
    harness.publish(args, report, table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
