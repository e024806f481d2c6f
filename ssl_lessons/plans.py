"""A grid's file: one notebook over combinations of its parameters, read and checked before anything runs.

notebook: row.ipynb                     # its path from this file, or a lesson's number
profile: smoke                          # of every run
parameters: {epochs: 3}                 # of every run
grid:                                   # every combination of these
  method: [simclr, moco, byol]
  seed: [0, 1]
exclude:                                # but not these; a list means any of its values
  - {method: byol, seed: [0, 1]}
override:                               # and these with something else, in this order
  - {when: {method: moco}, set: {epochs: 4}}
"""

import contextlib
import hashlib
import itertools
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from ssl_lessons import jobs
from ssl_lessons.parameters import Unknown, known

KEYS = ("notebook", "profile", "parameters", "grid", "exclude", "override")
KINDS = {
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
    "str": (str, "text"),
}


@dataclass(frozen=True)
class Planned:
    """One run of a grid. `parameters` are those that it sets; the `fingerprint` is of all, defaults too."""

    name: str
    notebook: Path
    parameters: dict
    fingerprint: str

    def folder(self, out: Path) -> Path:
        return out / f"{self.name}-{self.fingerprint[:8]}"


def read(file: str | Path) -> list[Planned]:
    """The runs of a grid's YAML file, in the order of its values, every name in it checked.

    Raises:
        Unknown: a key, notebook, parameter or value that does not exist, a rule that matches no run, two runs
            alike; the message names it, and what there is.
    """
    plan, here = _load(Path(file)), Path(file).resolve().parent
    notebook = _notebook(plan.get("notebook"), here)
    declared, kinds = jobs.defaults(notebook), jobs.kinds(notebook)
    if "run_dir" not in declared:
        raise Unknown(f"{notebook.name} has no parameter run_dir: its records would lie in one place")

    def names(value, where: str) -> dict:
        if not isinstance(value, dict) or not value:
            raise Unknown(f"{where} {value!r} must be names with values")
        for name in value:
            known(f"parameter of {notebook.name} in {where}", name, [n for n in declared if n != "run_dir"])
        return value

    axes = names(plan.get("grid"), "grid")
    for name, values in axes.items():
        if not isinstance(values, list) or not values:
            raise Unknown(f"grid: {name} {values!r} must be a list of values")
    fixed = names(plan["parameters"], "parameters") if plan.get("parameters") else {}
    profile = {"profile": plan["profile"]} if "profile" in plan else {}
    for name in ({*fixed} & {*axes}) | ({*fixed, *axes} & {*profile}):
        raise Unknown(f"parameter {name!r} is set in two places of {file}")
    common = {**(names(profile, "profile") if profile else {}), **fixed}
    combinations = itertools.product(*axes.values())
    runs = [{**common, **dict(zip(axes, values, strict=True))} for values in combinations]

    def matching(rule, where: str, among: list[dict]) -> list[dict]:
        """The runs that a rule is for: each of its values must be some run's, and one run must fit all."""
        rule = {n: v if isinstance(v, list) else [v] for n, v in names(rule, where).items()}
        for name, values in rule.items():
            there = [run.get(name, declared[name]) for run in among]
            for value in values:
                if value not in there:
                    listed = ", ".join(dict.fromkeys(map(repr, there)))
                    raise Unknown(f"{where}: {name} {value!r} is no run's; there are: {listed}")
        found = [r for r in among if all(r.get(n, declared[n]) in values for n, values in rule.items())]
        if not found:
            raise Unknown(f"{where} {rule!r} matches no run: none has all of these")
        return found

    excluded = [run for rule in _list(plan, "exclude") for run in matching(rule, "exclude", runs)]
    runs = [run for run in runs if run not in excluded]
    if not runs:
        raise Unknown(f"{file}: every run is excluded")
    for rule in _list(plan, "override"):
        if not isinstance(rule, dict) or {*rule} != {"when", "set"}:
            raise Unknown(f"override {rule!r} must be {{when: {{name: value}}, set: {{name: value}}}}")
        for run in matching(rule["when"], "override", runs):
            run.update(names(rule["set"], "override"))
    planned = {}
    for run in runs:
        one = _planned(notebook, declared, kinds, run, axes, here)
        if (other := planned.setdefault(one.fingerprint, one)) is not one:
            raise Unknown(f"two runs of {file} are the same: {other.parameters} and {one.parameters}")
    return list(planned.values())


def _load(file: Path) -> dict:
    """The content of a grid's file: a mapping with known keys, none of them twice."""
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        _once(yaml.compose(text), file)
        plan = yaml.safe_load(text)
    except (FileNotFoundError, IsADirectoryError):
        there = sorted((Path(__file__).parent.parent / "notebooks" / "grids").glob("*.yaml"))
        raise Unknown(
            f"there is no file {file}; a grid is, for example: {', '.join(map(str, there))}"
        ) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise Unknown(f"{file} cannot be read as YAML: {error}") from None
    if not isinstance(plan, dict):
        raise Unknown(f"{file} must be a mapping with the keys {', '.join(KEYS)}")
    for key in plan:
        known(f"key of {file.name}", key, KEYS)
    return plan


def _once(node, file: Path) -> None:
    """Refuse a key that stands twice in one mapping: YAML would silently keep the last."""
    pairs = node.value if node is not None and node.id == "mapping" else []
    keys = [key.value for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise Unknown(f"{file}: the key {key!r} stands twice in one place")
    inner = [value for _, value in pairs] if pairs else node.value if node and node.id == "sequence" else []
    for each in inner:
        _once(each, file)


def _list(plan: dict, key: str) -> list:
    value = plan.get(key) or []
    if not isinstance(value, list):
        raise Unknown(f"{key} {value!r} must be a list")
    return value


def _notebook(name, here: Path) -> Path:
    if name is None or isinstance(name, bool | float | list | dict):
        raise Unknown(f"notebook {name!r} must be a path from the grid's file, or a lesson's number")
    if (path := here / str(name)).suffix == ".ipynb":
        if not path.is_file():
            there = ", ".join(sorted(other.name for other in path.parent.glob("*.ipynb"))) or "none"
            raise Unknown(f"there is no notebook {path}; in that folder: {there}")
        return path.resolve()
    return jobs.find_lesson(str(name))


def _planned(notebook: Path, declared: dict, kinds: dict, run: dict, axes: dict, here: Path) -> Planned:
    """One run, the values that it sets checked, its dataset's folder and its profile made plain."""
    from ssl_lessons import images, lab, networks
    from ssl_lessons.lab import experiments

    for name, value in run.items():
        _check_kind(name, value, kinds[name], declared[name])
    values = {**declared, **run}
    if "profile" in values:  # which one "auto" means is part of what is run
        try:
            run = {**run, "profile": lab.pick_profile(values["profile"])}
        except lab.LessonError as error:
            raise Unknown(str(error)) from None
    recipes = {name: sys.modules[kind.__module__].RECIPES for name, kind in experiments.METHODS.items()}
    mine = recipes.get(str(values.get("method"))) or sorted(
        {name for each in recipes.values() for name in each}
    )
    there = {"method": experiments.TITLES, "network": networks.NETWORKS, "recipe": mine}
    for name in there.keys() & run.keys():
        if run[name] not in (None, ""):  # which mean the profile's own
            known(name, run[name], there[name])
    if run.get("dataset") and run["dataset"] not in images.CATALOGUE:
        folder = here / Path(run["dataset"]).expanduser()
        if not folder.is_dir():
            known(
                "dataset", run["dataset"], [*images.CATALOGUE, "the path of a folder, from the grid's file"]
            )
        run = {**run, "dataset": str(folder.resolve())}
    values = {name: value for name, value in {**declared, **run}.items() if name != "run_dir"}
    text = json.dumps([notebook.name, values], sort_keys=True, default=str)
    words = "-".join(Path(str(values[name])).name for name in axes)
    return Planned(
        re.sub(r"[^\w.+=-]+", "_", words)[:100], notebook, run, hashlib.sha256(text.encode()).hexdigest()[:16]
    )


def _check_kind(name: str, value, kind: str, default) -> None:
    """Refuse a value of another kind than the parameter's; where None or "" is its default, None will do."""
    if kind not in KINDS or (value is None and default in (None, "")):
        return
    types, words = KINDS[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool"):
        hint = ""
        with contextlib.suppress(ValueError, TypeError):
            if isinstance(value, str):
                hint = f"; YAML takes this for text, write {float(value)!r}"
        raise Unknown(f"parameter {name} is {value!r}; it must be {words}{hint}")
