"""What a notebook calls: its setting (`lesson`), its trials (`experiments`) and its exercises (`checks`)."""

from ssl_lessons.lab.checks import assess, check, exercise  # noqa: F401
from ssl_lessons.lab.evidence import beside, experiment, long_run, mean_error  # noqa: F401
from ssl_lessons.lab.experiments import (  # noqa: F401
    METHODS,
    TITLES,
    add_judgement,
    baselines,
    open_run,
    runs_folder,
    trained,
    trial,
)
from ssl_lessons.lab.lesson import (  # noqa: F401
    PROFILES,
    finish,
    gap,
    judgement,
    pick_profile,
    results,
    setup,
    show_recipe,
)
