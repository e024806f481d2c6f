"""Exercise 09.1, mean and spread: its solution, cases, and known mistakes."""

import statistics


def summary(runs, latest=dict, spread=statistics.stdev, alone=None):
    values = list(latest(runs).values())
    return statistics.fmean(values), spread(values) if len(values) > 1 else alone, len(values)


def every_run(runs):
    return dict(enumerate(value for _, value in runs))


summary_mistakes = {
    "divided by n; of a sample it is n − 1": lambda runs: summary(runs, spread=statistics.pstdev),
    "a seed that was run twice counts twice; it is one observation": lambda runs: summary(runs, every_run),
    "of a seed that was run twice the first is kept; the newest counts": (
        lambda runs: summary(runs, lambda pairs: dict(reversed(pairs)))
    ),
    "one seed has spread 0; it has none: return None": lambda runs: summary(runs, alone=0.0),
    "s / √n is the error of the mean; the spread of the seeds is asked": (
        lambda runs: summary(runs, spread=lambda x: statistics.stdev(x) / len(x) ** 0.5)
    ),
    "that is the variance; take its square root": lambda runs: summary(runs, spread=statistics.variance),
}


def summary_case(seed):
    cases = ([(0, 0.40), (1, 0.44), (2, 0.48)], [(0, 0.40), (1, 0.44), (0, 0.50)], [(3, 0.5)])
    return (cases[seed],)


EXERCISE = {
    "solution": summary,
    "case": summary_case,
    "mistakes": summary_mistakes,
    "observe": lambda result, runs: [result[0], -1.0 if result[1] is None else result[1], result[2]],
}
