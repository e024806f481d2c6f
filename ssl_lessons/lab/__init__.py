"""What a notebook calls: its setting (`lesson`), its trials (`experiments`) and its exercises (`checks`)."""

from ssl_lessons.lab.checks import attempt, check
from ssl_lessons.lab.experiments import (
    METHODS,
    TITLES,
    add_judgement,
    baselines,
    knn_of,
    runs_folder,
    trained,
    trial,
)
from ssl_lessons.lab.lesson import (
    PROFILES,
    LessonError,
    benchmark,
    compare,
    finish,
    measured_minutes,
    pick_profile,
    recorded_minutes,
    results,
    setup,
)

__all__ = [
    "METHODS",
    "PROFILES",
    "TITLES",
    "LessonError",
    "add_judgement",
    "attempt",
    "baselines",
    "benchmark",
    "check",
    "compare",
    "finish",
    "knn_of",
    "measured_minutes",
    "pick_profile",
    "recorded_minutes",
    "results",
    "runs_folder",
    "setup",
    "trained",
    "trial",
]
