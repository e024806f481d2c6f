"""Exercise 10.2, a log: its solution, cases, and known mistakes."""

import csv
import tempfile
from pathlib import Path

import torch


def log_to_csv(path, columns):
    def log(row):
        fresh = not Path(path).exists()
        with open(path, "a", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
            if fresh:
                writer.writeheader()
            writer.writerow(row)

    return log


def logging_with(mode="a", header="first", cells=None, skip=lambda row: False):
    """A logger with one thing done otherwise."""

    def logger(path, columns):
        def log(row):
            fresh = not Path(path).exists()
            with open(path, mode, newline="") as file:
                writer = csv.writer(file)
                if header == "always" or (header == "first" and fresh):
                    writer.writerow(columns)
                if not skip(row):
                    writer.writerow(cells(row, columns) if cells else [row.get(c, "") for c in columns])

        return log

    return logger


log_mistakes = {
    'the file is opened with mode "w", which begins it anew in each epoch; append with "a"': (
        logging_with("w", "always")
    ),
    "the names of the columns are written in each call; once, when the file does not exist yet": (
        logging_with(header="always")
    ),
    "the first line must name the columns": logging_with(header="never"),
    "values stand in the order of the row: look each one up by the name of its column": (
        logging_with(cells=lambda row, columns: [row[key] for key in row if key in columns])
    ),
    "a missing value was left out, and what follows moves into its column; leave its place empty": (
        logging_with(cells=lambda row, columns: [row[c] for c in columns if c in row])
    ),
    "a missing value became 0: a curve would fall to 0 there; leave its place empty": (
        logging_with(cells=lambda row, columns: [row.get(c, 0) for c in columns])
    ),
    "rows that lack a column are dropped; write them, with an empty place": (
        logging_with(skip=lambda row: "knn" not in row)
    ),
    "the row's other values are written too; only the columns that were asked for": (
        logging_with(
            cells=lambda row, c: [*(row.get(k, "") for k in c), *(row[k] for k in row if k not in c)]
        )
    ),
}


PLACE = tempfile.TemporaryDirectory()  # goes with this process, and every case's file with it


def log_case(seed):
    columns = (["epoch", "loss", "knn"], ["epoch", "knn", "loss"], ["knn", "epoch"])[seed]
    return Path(tempfile.mkdtemp(dir=PLACE.name), "log.csv"), columns


def what_is_written(log, path, columns):
    """Three rows are logged; the file as text, in numbers."""
    rows = ({"loss": 0.5, "epoch": 1, "lr": 0.1}, {"knn": 0.4, "loss": 0.3, "lr": 0.1, "epoch": 2})
    for row in (*rows, {"epoch": 3, "loss": 0.2, "lr": 0.0}):
        log(row)
    return torch.tensor(list("\n".join(path.read_text().split()).encode()))


EXERCISE = {
    "solution": log_to_csv,
    "case": log_case,
    "mistakes": log_mistakes,
    "observe": what_is_written,
}
