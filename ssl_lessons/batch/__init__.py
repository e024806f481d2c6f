"""Many runs: a notebook over a grid of its parameters (`grid`), and records as a table (`leaderboard`)."""

from ssl_lessons.batch import grid, leaderboard

__all__ = ["grid", "leaderboard"]
