"""`ssl-lessons …`, which is `python -m ssl_lessons …`: parses, calls the package, prints.

Each command imports what it needs when it runs: `pretrain` and `evaluate` work where no notebook package is
installed, and `--help` waits for nothing. Exit codes: 0 it worked; 1 it ran and failed, or `doctor` found
something broken; 2 it was asked for something that does not exist (the answer lists what does); 130 it was
interrupted.
"""

import argparse
import contextlib
import importlib
import json
import os
import pkgutil
import platform
import runpy
import shutil
import sys
import time
from importlib import metadata, util
from pathlib import Path

from ssl_lessons import __version__
from ssl_lessons.parameters import Unknown, check, known, of_notebook, of_recipe

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


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
    shown, rows = {}, []
    for name, metric in metrics.items():
        value = metric["value"]
        shown[name] = f"{value:.1%}" if 0 <= value <= 1 else f"{value:.4g}"
        shown[name] += f" ± {metric['std']:.1%}" if "std" in metric else ""
    for name, value in shown.items():
        if not name.endswith(("_random", "_supervised")):
            beside = []
            for baseline in ("random", "supervised"):
                if f"{name}_{baseline}" in shown:
                    beside.append(f"{baseline} {shown[f'{name}_{baseline}']}")
            rows.append((name, value, ", ".join(beside), metrics[name].get("protocol", "")))
    return table(rows) if rows else "the record holds no metrics"


# ---- doctor and data ---------------------------------------------------------------------------------------


def examine() -> list[tuple[str, str, str]]:
    """What this Python and this machine have: (status, name, detail), a line each.

    The status is "ok", "warning" or "broken", and only the last stops a lesson. It works where torch does
    not, and never raises for what it finds.
    """
    import psutil

    memory = psutil.virtual_memory().total / 2**30
    found = [("ok", "python", f"{platform.python_version()}, {platform.platform()}")]
    found.append(("ok", "cpu", f"{os.cpu_count()} cores, {memory:.1f} GiB of memory"))
    try:  # a torchvision of another torch lacks its compiled operators
        import torch
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        found.append(("ok", "torch", f"{torch.__version__} with torchvision {torchvision.__version__}"))
        found += _machine()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        remedy = "install them together: pip install --upgrade torch torchvision"
        found.append(("broken", "torch", f"torch and torchvision are not a pair ({error}); {remedy}"))
    try:
        release = metadata.version("fastprogress")
        bad = release in ("1.1.0", "1.1.1", "1.1.2", "1.1.3", "1.1.4")
        remedy = f"{release} fails on Colab: pip install --upgrade fastprogress"
        found.append(("broken", "fastprogress", remedy) if bad else ("ok", "fastprogress", release))
    except metadata.PackageNotFoundError:
        found.append(("broken", "fastprogress", "missing: pip install fastprogress"))
    packages = ("jupyterlab", "papermill", "nbconvert", "ipykernel")
    if missing := [name for name in packages if not util.find_spec(name)]:
        return [*found, ("warning", "notebooks", f"missing: pip install {' '.join(missing)}")]
    return [*found, ("ok", "notebooks", "ready")]


def _machine() -> list[tuple[str, str, str]]:
    """What needs a working torch to be told: device, profile, data."""
    from ssl_lessons import devices, images, lab

    device = devices.pick_device("auto")
    detail = f"{device}, precision {devices.pick_precision('auto', device)}"
    found = []
    if device.type == "cuda":
        import torch

        card = torch.cuda.get_device_properties(device)
        detail += f"; {card.name}, {card.total_memory / 2**30:.1f} GiB"
    found = [("ok", "device", detail)]
    for name, look in (
        ("profile", lambda: f"{lab.pick_profile()} is what 'auto' means here"),
        ("data root", lambda: f"{images.data_root()}, decoded images in {images.cache_root()}"),
    ):
        try:
            found.append(("ok", name, look()))
        except (
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # SSL_LESSONS_PROFILE names none, nowhere to write
            found.append(("broken", name, str(error)))
    root = images.data_root()
    there = next(place for place in (root, *root.parents) if place.exists())
    free = shutil.disk_usage(there).free / 2**30
    return [*found, ("ok" if free > 2 else "warning", "disk", f"{free:.1f} GiB free")]


def doctor(args) -> int:
    found = examine()
    broken = any(status == "broken" for status, *_ in found)
    rows = [dict(zip(("status", "name", "detail"), finding, strict=True)) for finding in found]
    show(args, {"ok": not broken, "version": __version__, "findings": rows}, table(found))
    return FAILED if broken else OK


def data_list(args) -> int:
    from ssl_lessons import images

    rows = []
    for name, entry in images.CATALOGUE.items():
        rows.append({"name": name, "title": entry.title, "splits": entry.splits, "classes": entry.classes})
    lines = [(row["name"], ", ".join(row["splits"]), row["title"]) for row in rows]
    show(args, rows, table([("NAME", "SPLITS", "WHAT IT IS"), *lines]))
    return OK


def data_fetch(args) -> int:
    from ssl_lessons import images

    known("dataset", args.name, images.CATALOGUE)
    with talk(args):
        path = images.fetch(args.name, args.size)
    show(args, {"name": args.name, "path": path}, f"{args.name} is in {path}")
    return OK


# ---- run, grid and leaderboard -----------------------------------------------------------------------------


def run(args) -> int:
    from ssl_lessons.batch import grid

    notebook = grid.find_lesson(args.lesson)
    asked = dict(args.p)
    for name in ("profile", "dataset"):
        if getattr(args, name):
            asked[name] = getattr(args, name)
    parameters = grid.checked(notebook, asked, Path.cwd())
    values = {key: one.default for key, one in of_notebook(notebook).items()} | parameters
    words = [Path(str(values[key])).name for key in ("dataset", "profile") if values.get(key)]
    name = "-".join([notebook.stem, *words, time.strftime("%Y%m%d-%H%M%S")])
    folder = Path(args.out or Path("runs", name)).resolve()
    with talk(args):
        print(f"{notebook.name} {parameters} → {folder}", flush=True)
        one = grid.planned(notebook, parameters, name)
        state = grid.carry_out(one, folder, say=lambda text: print(text, end="", flush=True))
    paths = {"notebook": folder / notebook.name, "html": (folder / notebook.name).with_suffix(".html")}
    paths["record"] = folder / "record.json"
    paths = {kind: path if path.exists() else None for kind, path in paths.items()}
    metrics = json.loads(paths["record"].read_text(encoding="utf-8"))["metrics"] if paths["record"] else {}
    lines = [f"{kind:<9}{path}" for kind, path in paths.items() if path]
    lines += [metric_table(metrics)] if metrics and not state["error"] else []
    answer = {"ok": not state["error"], **paths, "error": state["error"], "metrics": metrics}
    show(args, answer, "\n".join(lines))
    if state["error"]:
        kept = f"what it reached is kept in {paths['notebook'] or folder}"
        print(f"{notebook.name}: {state['error']}; {kept}", file=sys.stderr)
    return FAILED if state["error"] else OK


def grid(args) -> int:
    from ssl_lessons.batch import grid

    if args.jobs is not None and args.jobs < 1:
        raise Unknown(f"--jobs {args.jobs} must be at least 1")
    if args.jobs and args.scheduler:
        raise Unknown("--jobs is for this machine; on a cluster the number of its workers decides")
    plan, out = grid.read(args.file), Path(args.out or Path("runs", Path(args.file).stem)).resolve()
    with talk(args):
        try:
            rows = grid.results(out, plan) if args.dry_run else grid.run(plan, out, args.jobs, args.scheduler)
        except KeyboardInterrupt:
            print(f"stopped; the same command goes on where {out} stands", file=sys.stderr)
            raise
    failed = rows[rows["status"] == "failed"]
    lines = [f"{(rows['status'] == 'done').sum()} of {len(rows)} runs done, in {out}"]
    if args.dry_run:
        lines += [table((row.status, Path(row.folder).name) for row in rows.itertuples())]
    elif len(failed):
        lines.append(f"{len(failed)} failed; the same command tries them again:")
        lines += [
            f"  {row.name}: {row.error}\n    log: {row.folder}/run.log"
            for row in failed.itertuples(index=False)
        ]
    ok = bool(args.dry_run or (rows["status"] == "done").all())
    show(args, {"ok": ok, "out": out, "runs": json.loads(rows.to_json(orient="records"))}, "\n".join(lines))
    return OK if ok else FAILED


def leaderboard(args) -> int:
    from ssl_lessons.batch import leaderboard as board

    for place in args.runs:
        if not Path(place).exists():
            raise Unknown(f"there is nothing at {place}; name record files, or folders that hold some")
    places = args.runs or [board.committed()]
    if not Path(places[0]).exists():
        raise Unknown("only a checkout has committed records; name your own, such as runs/")
    runs, problems = board.read(places)
    if len(runs):
        known("metric", args.metric, board.metrics(runs))
        for name in runs["record"][runs[args.metric].isna()]:
            problems.append(f"{name} has no metric {args.metric}: unfinished, or not judged by it")
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    if not len(runs):
        print(f"no record can be used in {', '.join(map(str, places))}", file=sys.stderr)
        return FAILED
    found = board.tables(runs, args.metric)
    if args.figure:
        from ssl_lessons import figures

        label = board.LABELS.get(args.metric, args.metric)
        figures.leaderboard(found, args.metric, label).savefig(args.figure)
    if args.into:
        board.put_into(args.into, board.markdown(found, args.metric) if args.runs else board.readme())
        print(f"{args.into} has the results between its markers", file=sys.stderr)
        return OK
    write = {
        "markdown": lambda: board.markdown(found, args.metric),
        "html": lambda: board.page(found, args.metric),
        "json": lambda: board.as_json(found, args.metric, problems),
        "csv": lambda: board.as_csv(found),
    }
    print(write.get(args.form, lambda: board.text(found, args.metric))())
    return OK


# ---- pretrain and evaluate ---------------------------------------------------------------------------------


def dataset(name: str) -> str:
    """A name of the catalogue as it is, a folder of images as an absolute path."""
    from ssl_lessons import images

    if name not in images.CATALOGUE and Path(name).expanduser().is_dir():
        return str(Path(name).expanduser().resolve())
    return known("dataset", name, [*images.CATALOGUE, "the path of a folder"])


def method_file(name: str):
    """The method in ssl_lessons/methods/NAME.py, and that file's recipes."""
    from ssl_lessons import methods
    from ssl_lessons.methods.base import Method

    files = sorted({file.name for file in pkgutil.iter_modules(methods.__path__)} - {"base", "recipes"})
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
            for name, metric in evaluate.report(each, *stores, view, **asked).items():
                metrics[f"{prefix}{name}{mark}"] = metric
        run.record["metrics"].update(metrics)
        run.save()
    told = metric_table(metrics) if stores else "not judged: there are no labelled train and test images"
    show(args, {"run": run.folder.resolve(), "metrics": metrics}, f"{told}\nrecord in {run.folder}")
    return OK


def pretrain(args) -> int:
    import torch

    from ssl_lessons import devices, evaluate, images, networks, training, views
    from ssl_lessons.records import Run

    make, recipes = method_file(args.method)
    name = args.recipe or ("lesson" if "lesson" in recipes else next(iter(recipes)))
    recipe = recipes[known("recipe", name, recipes)]
    fields = check(dict(args.p), of_recipe(recipe), "recipe field")
    if "policy" in fields:
        fields["policy"] = views.POLICIES[known("policy", fields["policy"], views.POLICIES)]
    known("network", args.network, networks.NETWORKS)
    data, device, out = dataset(args.dataset), devices.pick_device(args.device), Path(args.out)
    network = {"name": args.network, "image_size": args.crop, "stem": args.stem, "layer": None}
    run = Run.open(out) if (out / "record.json").exists() else Run.create(out, device=device, network=network)
    if run.record.get("network") != network:
        raise Unknown(f"{out} holds a run of {run.record.get('network')}, not {network}; name another --out")
    with talk(args):
        pool = images.load(data, "pretrain", args.size, limit=args.limit)
        stores = labelled(args, data, args.size)
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


def bench(args) -> int:
    places = (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parent.parent)
    folders = [place / "tests" / "benchmarks" for place in places]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise Unknown("benchmarks are in a checkout, not in the installed package: clone the repository")
    scripts = {file.stem.removeprefix("bench_"): file for file in sorted(folder.glob("bench_*.py"))}
    script = scripts[known("benchmark", args.name, scripts)]
    sys.argv = [f"ssl-lessons bench {args.name}", *args.arguments]
    sys.path.insert(0, str(folder))  # what the benchmarks share lies beside them
    runpy.run_path(str(script), run_name="__main__")
    return OK


# ---- The arguments -----------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="ssl-lessons",
        description="Self-supervised learning, step by step: data, lessons, training runs, judgement.",
        epilog="example: ssl-lessons run 03 --profile class --dataset shapes",
    )
    top.add_argument("--version", action="version", version=__version__)
    verbs = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function, text: str, example: str, group=verbs, json=True):
        epilog = f"example: ssl-lessons {example}"
        made = group.add_parser(name, help=text, description=text, epilog=epilog)
        made.set_defaults(function=function)
        if json:
            made.add_argument("--json", action="store_true", help="print JSON; all else to standard error")
        return made.add_argument

    def settings(option):
        option("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set one by name")

    def images(option):
        option("--limit", type=int, help="use at most so many images of each split")
        option("--device", default="auto", help="auto, cpu, cuda or cuda:0")

    command("doctor", doctor, "what this machine has, and whether anything is broken", "doctor")
    data = verbs.add_parser("data", help="list or fetch datasets", epilog="example: ssl-lessons data list")
    data = data.add_subparsers(required=True, metavar="ACTION")
    command("list", data_list, "the datasets known by name", "data list --json", data)
    text = "download, verify and unpack a dataset"
    option = command("fetch", data_fetch, text, "data fetch imagenette --size 160", data)
    option("name", metavar="NAME")
    option("--size", type=int, default=160, help="short side of the archive's images: 160 or 320")

    text = "execute a lesson into runs/…, with an HTML copy"
    option = command("run", run, text, "run 03 --profile class --dataset imagenette -p epochs 20")
    option("lesson", metavar="LESSON", help="a number, a name, or the path of a notebook")
    option("--profile", help="auto, smoke, class or full")
    option("--dataset", help="a name from `data list`, or a folder of images")
    option("--out", help="folder of the run (default: runs/LESSON-DATASET-PROFILE-TIME)")
    settings(option)

    text = "execute a notebook over a grid of parameters; again to go on where it stopped"
    option = command("grid", grid, text, "grid notebooks/grids/methods_on_shapes.yaml --jobs 2")
    option("file", metavar="FILE", help="a grid in YAML, such as those in notebooks/grids/")
    option("--out", metavar="DIR", help="folder of the runs (default: runs/NAME-OF-FILE)")
    option("--jobs", type=int, metavar="N", help="side by side (default: one for each GPU, else one)")
    option("--scheduler", metavar="URL", help="tcp://…: on a Dask scheduler's workers, who share our folders")
    option("--dry-run", action="store_true", help="list the runs, and which are finished")

    text = "train a method without labels, then judge its encoder; again to go on after an interruption"
    example = "pretrain --dataset shapes --network conv4 --epochs 3 -p temperature 0.1 --out runs/first"
    option = command("pretrain", pretrain, text, example)
    option("--out", required=True, help="folder of the run")
    option("--method", default="moco", help="a file of ssl_lessons/methods/ (default: moco)")
    option("--recipe", help="settings by name (default: lesson, made for runs of minutes)")
    option("--network", default="resnet18", help="conv4, resnet10_half, resnet18 (default) or resnet50")
    option("--stem", choices=("imagenet", "small", "pool", "stride"), help="default: by --crop")
    option("--dataset", default="shapes", help="a name from `data list`, or a folder of images")
    option("--size", type=int, default=64, help="side of the stored images, pixels (default: 64)")
    option("--crop", type=int, default=48, help="side of the views, pixels (default: 48)")
    option("--epochs", type=int, help="default: the recipe's")
    option("--batch-size", type=int, help="default: the recipe's")
    option("--seed", type=int, default=0)
    option("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    settings(option)
    images(option)

    text = "judge a run's encoder beside a random one: kNN, linear probes with 100, 10 and 1 %% of the labels"
    option = command("evaluate", evaluate, text, "evaluate runs/first --dataset imagewoof")
    option("run", metavar="RUN", help="the folder of a run")
    option("--dataset", help="judge on another dataset than the run's own")
    option("--size", type=int, help="side of the stored images (default: the run's)")
    option("--fine-tune", action="store_true", help="also train the whole network with a part of the labels")
    images(option)

    text = "run records as a table: mean ± std over seeds, ranked, nothing averaged that may not be"
    example = "leaderboard runs/leaderboard --metric linear_10 --figure leaderboard.png"
    option = command("leaderboard", leaderboard, text, example, json=False)
    option("runs", metavar="RUNS", nargs="*", help="records, or folders of them; none: the committed ones")
    option("--metric", default="knn", help="what ranks: knn (default), linear_100, linear_10, linear_1, …")
    option("--figure", metavar="FILE", help="draw accuracy against wall-clock as well, PNG, SVG or PDF")
    option("--into", metavar="FILE", help="put Markdown between the file's markers <!-- results -->")
    for name in ("markdown", "html", "json", "csv"):
        option(f"--{name}", dest="form", action="store_const", const=name, help=f"print {name}, not text")

    option = command("bench", bench, "run a benchmark of tests/benchmarks/", "bench views", json=False)
    option("name", metavar="NAME", help="views, …")
    option("arguments", nargs=argparse.REMAINDER, help="handed to the benchmark; try --help")
    return top


def main(argv: list[str] | None = None) -> int:
    """The command line: returns its exit code."""
    args = parser().parse_args(argv)
    try:
        return args.function(args)
    except KeyboardInterrupt:
        print("ssl-lessons: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        told = isinstance(error, (ValueError, OSError)) or type(error).__module__.startswith("ssl_lessons.")
        if not told:
            raise  # a bug: show all of it
        print(f"ssl-lessons: {error}", file=sys.stderr)
        return USAGE if isinstance(error, Unknown) else FAILED
