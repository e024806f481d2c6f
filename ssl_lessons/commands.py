"""What each command of `ssl-lessons` does: calls the package and prints.

Each imports what it needs when it runs, so that `pretrain`, `evaluate` and `bench` work where no notebook
package is installed.
"""

import contextlib
import importlib
import json
import pkgutil
import runpy
import sys
from pathlib import Path

from ssl_lessons import __version__
from ssl_lessons.jobs import check_settings, checkout, literal
from ssl_lessons.parameters import Unknown, known

OK, FAILED = 0, 1
SHOWN = ("title", "splits", "classes", "licence")  # of a dataset, in JSON


# ---- Printing ----------------------------------------------------------------------------------------------


def show(args, value, text: str) -> None:
    """Print for a program (`--json`) or for a person."""
    print(json.dumps(value, indent=2, default=str) if args.json else text)


def talk(args):
    """With --json, standard output belongs to the JSON; whatever else is printed goes to standard error."""
    return contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext()


def table(rows) -> str:
    """Rows as aligned columns."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def metric_table(metrics: dict) -> str:
    """One line a metric: its value, its baselines where they were judged, and the protocol of all."""
    baselines = {"_random": "random encoder", "_supervised": "supervised"}
    shown, rows = {}, []
    for name, entry in metrics.items():
        shown[name] = f"{v:.1%}" if 0 <= (v := entry["value"]) <= 1 else f"{v:.4g}"
        shown[name] += f" ± {entry['std']:.1%}" if "std" in entry else ""
    for name in shown:
        if not name.endswith(tuple(baselines)):
            beside = [
                f"{title} {shown[name + end]}" for end, title in baselines.items() if name + end in shown
            ]
            rows.append((name, shown[name], ", ".join(beside), metrics[name].get("protocol", "")))
    return table(rows) if rows else "the record holds no metrics"


# ---- doctor and data ---------------------------------------------------------------------------------------


def doctor(args) -> int:
    from ssl_lessons.doctor import examine

    found = examine()
    broken = any(finding.status == "broken" for finding in found)
    rows = [finding._asdict() for finding in found]
    show(args, {"ok": not broken, "version": __version__, "findings": rows}, table(found))
    return FAILED if broken else OK


def data_list(args) -> int:
    from ssl_lessons import images

    entries = images.CATALOGUE.items()
    rows = [{"name": name, **{key: getattr(entry, key) for key in SHOWN}} for name, entry in entries]
    lines = [(name, ", ".join(entry.splits), entry.title) for name, entry in entries]
    show(args, rows, table([("NAME", "SPLITS", "WHAT IT IS"), *lines]))
    return OK


def data_fetch(args) -> int:
    from ssl_lessons import images

    known("dataset", args.name, images.CATALOGUE)
    with talk(args):
        path = images.fetch(args.name, args.size)
    show(args, {"name": args.name, "path": path}, f"{args.name} is in {path}")
    return OK


def data_verify(args) -> int:
    from ssl_lessons import images

    if args.name:
        known("dataset", args.name, images.CATALOGUE)
    with talk(args):
        found = [tuple(map(str, row)) for row in images.verify(args.name)]
    rows = [{"name": name, "file": file, "status": status} for name, file, status in found]
    show(args, rows, table(found) if found else f"there is nothing to verify under {images.data_root()}")
    return OK if all(status.startswith("ok") for _, _, status in found) else FAILED


# ---- run ---------------------------------------------------------------------------------------------------


def dataset(name: str) -> str:
    """A name of the catalogue as it is, a folder of images as an absolute path."""
    from ssl_lessons import images

    if name not in images.CATALOGUE and Path(name).expanduser().is_dir():
        return str(Path(name).expanduser().resolve())
    return known("dataset", name, [*images.CATALOGUE, "the path of a folder"])


def run(args) -> int:
    from ssl_lessons import jobs

    notebook = jobs.find_lesson(args.lesson)
    parameters = {name: literal(name, text) for name, text in args.p}
    if args.profile:
        from ssl_lessons import lab

        parameters["profile"] = known("profile", args.profile, ["auto", *lab.PROFILES])
    if args.dataset:
        parameters["dataset"] = dataset(args.dataset)
    check_settings(f"parameter of {notebook.name}", parameters, jobs.defaults(notebook))
    folder = Path(args.out) if args.out else jobs.job_folder(notebook, parameters)
    with talk(args):
        print(f"{notebook.name} {parameters} → {folder}", flush=True)
        job = jobs.execute(notebook, folder, parameters, lambda text: print(text, end="", flush=True))
    record = job.folder / "record.json"
    metrics = json.loads(record.read_text(encoding="utf-8"))["metrics"] if record.exists() else {}
    paths = {"notebook": job.notebook, "html": job.html, "record": record if record.exists() else None}
    lines = [f"{name:<9}{path}" for name, path in paths.items() if path]
    lines += [metric_table(metrics)] if metrics and not job.error else []
    show(args, {"ok": not job.error, **paths, "error": job.error, "metrics": metrics}, "\n".join(lines))
    if job.error:
        print(f"{notebook.name}: {job.error}; what it reached is kept in {job.notebook}", file=sys.stderr)
    return FAILED if job.error else OK


def grid(args) -> int:
    from ssl_lessons import grid, plans

    if args.jobs is not None and args.jobs < 1:
        raise Unknown(f"--jobs {args.jobs} must be at least 1")
    if args.jobs and args.scheduler:
        raise Unknown("--jobs is for this machine; on a cluster the number of its workers decides")
    plan, out = plans.read(args.file), Path(args.out or Path("runs", Path(args.file).stem)).resolve()
    with talk(args):
        try:
            states = grid.look(plan, out) if args.dry_run else grid.run(plan, out, args.jobs, args.scheduler)
        except KeyboardInterrupt:
            print(f"stopped; the same command goes on where {out} stands", file=sys.stderr)
            raise
    if args.dry_run:
        text = table(
            (s["status"], one.folder(out).name, s["parameters"]) for one, s in zip(plan, states, strict=True)
        )
    else:
        text = grid.account(states, out)
    ok = args.dry_run or all(state["status"] == "done" for state in states)
    runs = [{**s, "folder": one.folder(out)} for one, s in zip(plan, states, strict=True)]
    show(args, {"ok": ok, "out": out, "runs": runs}, text)
    return OK if ok else FAILED


# ---- pretrain and evaluate ---------------------------------------------------------------------------------


def method_file(name: str):
    """The method in ssl_lessons/methods/NAME.py, and that file's recipes."""
    from ssl_lessons import methods
    from ssl_lessons.methods.base import Method

    shared = ("base", "recipes")
    files = sorted(file.name for file in pkgutil.iter_modules(methods.__path__) if file.name not in shared)
    file = importlib.import_module(f"ssl_lessons.methods.{known('method', name, files)}")
    own = [thing for thing in vars(file).values() if getattr(thing, "__module__", "") == file.__name__]
    return next(thing for thing in own if isinstance(thing, type) and issubclass(thing, Method)), file.RECIPES


def labelled(args, data: str, size: int) -> list:
    """The stores to judge on, train and test; none where a folder of images has no labels or no test part."""
    from ssl_lessons import images

    try:
        stores = [images.load(data, split, size, limit=args.limit) for split in ("train", "test")]
    except images.DataError:
        if data in images.CATALOGUE:
            raise
        return []
    return stores if all(store.labels is not None for store in stores) else []


def judge(args, run, encoder, stores, prefix: str = "", fine_tune_epochs: dict | None = None) -> int:
    """Judge an encoder and a random one of its architecture, write both into the run's record, print them."""
    from ssl_lessons import evaluate

    network, metrics = run.record["network"], {}
    view = network["image_size"]
    if stores:
        same = (network["name"], view, network["stem"], run.record["seed"], network.get("layer"))
        untrained = evaluate.random_encoder(*same)
        for each, mark in ((encoder, ""), (untrained, "_random")):
            asked = {"device": args.device, "fine_tune_epochs": fine_tune_epochs}
            found = evaluate.report(each, *stores, view, **asked)
            metrics.update({f"{prefix}{name}{mark}": entry for name, entry in found.items()})
        run.record["metrics"].update(metrics)
        run.save()
    told = metric_table(metrics) if stores else "not judged: there are no labelled train and test images"
    show(args, {"run": run.folder.resolve(), "metrics": metrics}, f"{told}\nrecord in {run.folder}")
    return OK


def pretrain(args) -> int:
    import torch

    from ssl_lessons import evaluate, images, networks, training, views
    from ssl_lessons.records import Run

    make, recipes = method_file(args.method)
    name = args.recipe or ("lesson" if "lesson" in recipes else next(iter(recipes)))
    recipe = recipes[known("recipe", name, recipes)]
    fields = {name: literal(name, text) for name, text in args.p}
    check_settings("recipe field", fields, vars(recipe))
    if "policy" in fields:
        fields["policy"] = views.POLICIES[known("policy", fields["policy"], views.POLICIES)]
    known("network", args.network, networks.NETWORKS)
    data, device, out = dataset(args.dataset), training.pick_device(args.device), Path(args.out)
    network = {"name": args.network, "image_size": args.crop, "stem": args.stem, "layer": None}
    run = Run.open(out) if (out / "record.json").exists() else Run.create(out, device=device, network=network)
    if run.record.get("network") != network:
        raise Unknown(f"{out} holds a run of {run.record.get('network')}, not {network}; name another --out")
    with talk(args):
        pool, stores = (
            images.load(data, "pretrain", args.size, limit=args.limit),
            labelled(args, data, args.size),
        )
        torch.manual_seed(args.seed)  # the initial weights
        plain = networks.build(args.network, args.crop, args.stem)
        method = make(plain, image_size=args.crop, recipe=recipe, **fields)
        monitor = evaluate.knn_monitor(*stores, args.crop, args.device) if stores else None
        same = {name: getattr(args, name) for name in ("epochs", "batch_size", "seed", "device", "precision")}
        training.pretrain(method, pool, run=run, monitor=monitor, progress="lines", **same)
    return judge(args, run, method.encoder, stores)


def evaluate(args) -> int:
    from ssl_lessons import evaluate
    from ssl_lessons.records import Run

    if not (Path(args.run) / "record.json").exists():
        known("run", args.run, sorted(str(record.parent) for record in Path("runs").glob("*/record.json")))
    run = Run.open(args.run)
    trained_on = run.record["dataset"]
    data = dataset(args.dataset or trained_on["name"])
    with talk(args):
        stores = labelled(args, data, args.size or trained_on["size"])
    prefix = f"{Path(data).name}_" if args.dataset else ""
    epochs = evaluate.FINE_TUNE_EPOCHS if args.fine_tune else None
    return judge(args, run, evaluate.load_encoder(run), stores, prefix, epochs)


def leaderboard(args) -> int:
    from ssl_lessons import leaderboard, printing, speed

    for place in args.runs:
        if not Path(place).exists():
            raise Unknown(f"there is nothing at {place}; name record files, or folders that hold some")
    places = args.runs or [printing.committed()]
    entries, problems = leaderboard.read(places)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    if not entries:
        print(f"no record can be used in {', '.join(map(str, places))}", file=sys.stderr)
        return FAILED
    known("metric", args.metric, leaderboard.metrics(entries))
    for entry in entries:
        if args.metric not in entry.values:
            problems.append(f"{entry.name} has no metric {args.metric}: unfinished, or not judged by it")
            print(f"left out: {problems[-1]}", file=sys.stderr)
    found = leaderboard.tables(entries, args.metric)
    if args.figure:
        from ssl_lessons import charts

        charts.leaderboard(found, args.metric).savefig(args.figure)
    if args.into:
        own = printing.readme() if not args.runs else printing.markdown(found, args.metric)
        printing.put_into(args.into, own)
        for name, content in (("speed", speed.readme), ("minutes", speed.minutes)):
            if not args.runs and f"<!-- {name} -->" in Path(args.into).read_text(encoding="utf-8"):
                printing.put_into(args.into, content(), name)
        print(f"{args.into} has the results between its markers", file=sys.stderr)
        return OK
    write = {"markdown": printing.markdown, "html": printing.page, "csv": printing.as_csv}
    if args.form == "json":
        print(printing.as_json(found, args.metric, problems))
    else:
        print(write.get(args.form, printing.text)(found, args.metric))
    return OK


def bench(args) -> int:
    folder = checkout() / "tests" / "benchmarks"
    found = {file.stem.removeprefix("bench_"): file for file in sorted(folder.glob("bench_*.py"))}
    script = found[known("benchmark", args.name, found)]
    sys.argv = [f"ssl-lessons bench {args.name}", *args.arguments]
    sys.path.insert(0, str(folder))  # what the benchmarks share lies beside them
    runpy.run_path(str(script), run_name="__main__")
    return OK
