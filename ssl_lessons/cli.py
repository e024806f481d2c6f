"""`ssl-lessons …`, which is `python -m ssl_lessons …`: parses, calls the package, prints.

Modules are loaded when they are first used (`ssl_lessons.__getattr__`): `pretrain` and `evaluate` work where
no notebook package is installed, and `--help` waits for nothing. Exit codes: 0 it worked; 1 it ran and
failed, or `doctor` found something broken; 2 it was asked for something that does not exist (the answer
lists what does); 130 ctrl-C; 128 and the number of another signal that ended it, 141 for `| head`.
"""

import argparse
import codecs
import contextlib
import functools
import io
import json
import os
import platform
import runpy
import shutil
import signal
import sys
import threading
import time
from importlib import metadata
from pathlib import Path

import ssl_lessons as ssl
from ssl_lessons import parameters
from ssl_lessons.parameters import Parameter, Unknown, known, printable

OK, FAILED, USAGE, PIPE = 0, 1, 2, 141


# ---- Printing ----------------------------------------------------------------------------------------------

PLAIN = {"→": "->", "±": "+-", "–": "-", "−": "-", "…": "...", "✓": "ok", "✗": "not", "·": "*"}


def _in_plain(error: UnicodeEncodeError) -> tuple[str, int]:
    """What an output in ASCII or cp1252 cannot hold, in characters that it can."""
    part = error.object[error.start : error.end]
    return "".join(PLAIN.get(c, ascii(c)[1:-1]) for c in part), error.end


codecs.register_error("plain", _in_plain)


def lines_of(text: str) -> str:
    """Text as it may be printed: names of files and of records hold no command for a terminal."""
    return "\n".join(map(printable, text.split("\n")))


def show(args, value, text: str) -> None:
    """Print for a program (`--json`) or for a person. What else a command prints goes to standard error if
    standard output belongs to the JSON."""
    print(json.dumps(value, indent=2, default=str) if args.json else lines_of(text), file=args.stdout)


def warn(text: str) -> None:
    print(lines_of(text), file=sys.stderr)


def table(rows) -> str:
    """Rows as aligned columns."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def metric_table(metrics: dict) -> str:
    """One line a metric, one at least: its value and its protocol; a random encoder's end with _random."""
    rows = []
    for name, metric in metrics.items():
        value = metric["value"]
        shown = "not a number" if value is None else f"{value:.1%}" if 0 <= value <= 1 else f"{value:.4g}"
        spread = f" ± {metric['std']:.1%}" if "std" in metric else ""
        rows.append((name, shown + spread, metric.get("protocol", "")))
    return table(rows)


# ---- doctor and data ---------------------------------------------------------------------------------------


def _torch() -> str:
    import torch
    import torchvision

    try:  # a torchvision of another torch lacks its compiled operators
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (RuntimeError, AttributeError) as error:
        remedy = "install them together: pip install --upgrade torch torchvision"
        raise ImportError(f"torch and torchvision are not a pair ({error}); {remedy}") from None
    return f"{torch.__version__} with torchvision {torchvision.__version__}"


def _device() -> str:
    device = ssl.devices.pick_device("auto")
    precision = ssl.devices.pick_precision("auto", device)
    return f"{device}, {ssl.records.device_name(device)}, precision {precision}"


CHECKS = {
    "python": lambda: f"{platform.python_version()}, {platform.platform()}",
    "cpu": lambda: f"{os.cpu_count()} cores",
    "torch": _torch,
    "device": _device,
    "profile": lambda: f"{ssl.lab.pick_profile()} is what 'auto' means here",
    "data root": lambda: f"{ssl.images.data_root()}, decoded images in {ssl.images.cache_root()}",
    "disk": lambda: f"{shutil.disk_usage(ssl.images.cache_root()).free / 2**30:.1f} GiB free",
    "fastprogress": lambda: metadata.version("fastprogress"),
}


def examine() -> list[tuple[str, str, str]]:
    """What this Python and this machine have: ("ok" or "broken", name, detail), for each of `CHECKS`."""
    findings = []
    for name, look in CHECKS.items():
        try:
            findings.append(("ok", name, look()))
        except Exception as error:  # a compiled library may raise anything
            findings.append(("broken", name, str(error)))
    return findings


def doctor(args) -> int:
    findings = examine()
    healthy = all(status == "ok" for status, *_ in findings)
    rows = [{"status": status, "name": name, "detail": detail} for status, name, detail in findings]
    show(args, {"ok": healthy, "version": ssl.__version__, "findings": rows}, table(findings))
    return OK if healthy else FAILED


def data_list(args) -> int:
    rows, lines = [], [("NAME", "SPLITS", "WHAT IT IS")]
    for name, entry in ssl.images.CATALOGUE.items():
        rows.append({"name": name, "title": entry.title, "splits": entry.splits, "classes": entry.classes})
        lines.append((name, ", ".join(entry.splits), entry.title))
    show(args, rows, table(lines))
    return OK


def data_fetch(args) -> int:
    known("dataset", args.name, ssl.images.CATALOGUE)
    path = ssl.images.fetch(args.name, args.size)
    show(args, {"name": args.name, "path": path}, f"{args.name} is in {path}")
    return OK


# ---- run, grid and leaderboard -----------------------------------------------------------------------------


def run(args) -> int:
    grid = ssl.batch.grid
    notebook = grid.find_lesson(args.lesson)
    declared = parameters.of_notebook(notebook)
    options = {"profile": args.profile, "dataset": args.dataset}
    asked = dict(args.p) | {name: value for name, value in options.items() if value}
    chosen = grid.meant(parameters.check(asked, declared, f"parameter of {notebook.name}"), Path.cwd())
    values = {key: one.default for key, one in declared.items()} | chosen
    words = [Path(str(values[key])).name for key in ("dataset", "profile") if values.get(key)]
    name = "-".join([notebook.stem, *words, time.strftime("%Y%m%d-%H%M%S"), str(os.getpid())])
    out = (args.out or ssl.lab.runs_folder() / name).resolve()
    if (out / notebook.name).exists() and (out / notebook.name).samefile(notebook):
        raise Unknown(f"{notebook} lies in {out} itself; let --out name another folder")
    out.mkdir(parents=True, exist_ok=True)
    args.kept = f"; what it reached is kept in {out}"
    print(lines_of(f"{notebook.name} {chosen} → {out}"), flush=True)
    one = grid.planned(notebook, declared, chosen, name)
    say = functools.partial(print, end="", flush=True)
    error = grid.carry_out(one, out, say=say, minutes=args.minutes)["error"]
    files = {"notebook": notebook.name, "html": f"{notebook.stem}.html", "record": "record.json"}
    paths = {kind: out / name if (out / name).exists() else None for kind, name in files.items()}
    lines = [f"{kind:<9}{path}" for kind, path in paths.items() if path]
    text = paths["record"].read_text(encoding="utf-8") if paths["record"] and not error else "{}"
    metrics = json.loads(text).get("metrics", {})
    if metrics:
        lines += [metric_table(metrics), ssl.lab.beside(metrics)]  # the last line: what was learnt
    show(args, {"ok": not error, **paths, "error": error, "metrics": metrics}, "\n".join(lines))
    if error:
        warn(f"{notebook.name}: {error}{args.kept}")
    return FAILED if error else OK


def grid(args) -> int:
    grid = ssl.batch.grid
    if args.jobs and args.scheduler:
        raise Unknown("--jobs is for this machine; on a cluster the number of its workers decides")
    plan = grid.read(args.file)
    out = (args.out or ssl.lab.runs_folder() / Path(args.file).stem).resolve()
    args.kept = f"; the same command goes on where {out} stands"
    how = (args.jobs, args.scheduler, args.minutes)
    rows = grid.results(out, plan) if args.dry_run else grid.run(plan, out, *how)
    done = (rows["status"] == "done").sum()
    lines = [f"{done} of {len(rows)} runs done, in {out}"]
    if args.dry_run:
        lines.append(table(zip(rows["status"], rows["folder"].map(os.path.basename), strict=True)))
    else:  # the same command tries the failed ones again
        for row in rows[rows["status"] == "failed"].itertuples():
            lines.append(f"  {row.name}: {row.error}\n    log: {row.folder}/run.log")
    ok = bool(args.dry_run or done == len(rows))
    show(args, {"ok": ok, "out": out, "runs": json.loads(rows.to_json(orient="records"))}, "\n".join(lines))
    return OK if ok else FAILED


def leaderboard(args) -> int:
    board = ssl.batch.leaderboard
    places = args.runs or [board.committed()]
    for place in places:
        if not Path(place).exists():
            raise Unknown(f"there is nothing at {place}; name record files, or folders that hold some")
    runs, problems = board.read(places)
    tables = board.tables(runs, args.metric) if len(runs) else []
    if tables:
        for name in runs["record"][runs[args.metric].isna()]:
            problems.append(f"{name} has no metric {args.metric}: unfinished, or not judged by it")
    for problem in problems:
        warn(f"left out: {problem}")
    if not tables:
        warn(f"no record can be used in {', '.join(map(str, places))}")
        return FAILED
    forms = {**board.FORMS, "json": functools.partial(board.as_json, problems=problems)}
    print(forms[args.form](tables, args.metric))
    if args.figure:  # last: where it cannot be written, the table is there
        label = board.LABELS.get(args.metric, args.metric)
        ssl.figures.leaderboard(tables, args.metric, label).savefig(args.figure)
    return OK


# ---- pretrain and evaluate ---------------------------------------------------------------------------------


def labelled(args, data: str, size: int) -> list:
    """The stores to judge on, train and test; none where a folder of images has no labels or no test part."""
    try:
        stores = [ssl.images.load(data, split, size, limit=args.limit) for split in ("train", "test")]
    except ssl.images.DataError:
        if data in ssl.images.CATALOGUE:
            raise
        return []
    return stores if all(store.labels is not None for store in stores) else []


def judge(args, run, encoder, stores, prefix: str = "", fine_tune_epochs: dict | None = None) -> int:
    """Judge an encoder and a random one of its architecture, print both, write them into the run's record."""
    network, metrics = run.record["network"], {}
    view = network["image_size"]
    if stores:
        same = (network["name"], view, network["stem"], run.record["seed"], network.get("layer"))
        untrained = ssl.evaluate.random_encoder(*same)
        for judged, mark in ((encoder, ""), (untrained, "_random")):
            asked = {"device": args.device, "fine_tune_epochs": fine_tune_epochs}
            for name, metric in ssl.evaluate.report(judged, *stores, view, **asked).items():
                metrics[f"{prefix}{name}{mark}"] = metric
    text = metric_table(metrics) if stores else "not judged: there are no labelled train and test images"
    show(args, {"run": run.folder.resolve(), "metrics": metrics}, f"{text}\nrecord in {run.folder}")
    run.record["metrics"].update(metrics)
    if metrics:
        run.save()  # printed first: what cannot be written is not lost
    return OK


def pretrain(args) -> int:
    import torch

    make = ssl.lab.METHODS[known("method", args.method, ssl.lab.METHODS)]
    recipe = make.recipes[known("recipe", args.recipe, make.recipes)]
    fields = dict(args.p)
    for name in {"policy", "policy_prime"} & fields.keys():
        fields[name] = ssl.views.POLICIES[known("policy", fields[name], ssl.views.POLICIES)]
    recipe = recipe.override(**fields)
    ssl.networks.check_name(args.network)
    data = ssl.batch.grid.dataset(args.dataset, Path.cwd())
    network = {"name": args.network, "image_size": args.crop, "stem": args.stem, "layer": None}
    run = ssl.records.Run.at(args.out, device=ssl.devices.pick_device(args.device), network=network)
    before = run.record.get("network")
    if before != network:
        raise Unknown(f"{args.out} holds a run of {before}, not {network}; name another --out")
    args.kept = "; the same command goes on after the last epoch that it finished"
    pool = ssl.images.load(data, "pretrain", args.size, limit=args.limit)
    stores = labelled(args, data, args.size) if ssl.records.main_process() else []
    torch.manual_seed(args.seed)  # the initial weights
    plain = ssl.networks.build(args.network, args.crop, args.stem)
    method = make(plain, image_size=args.crop, recipe=recipe)
    monitor = ssl.evaluate.knn_monitor(*stores, args.crop, args.device) if stores else None
    same = {name: getattr(args, name) for name in ("epochs", "batch_size", "seed", "device", "precision")}
    ssl.training.pretrain(method, pool, run=run, monitor=monitor, progress="lines", **same)
    if not ssl.records.main_process():  # of several, one judges
        return OK
    return judge(args, run, method.encoder, stores)


def evaluate(args) -> int:
    if not any((args.run / name).exists() for name in ("record.json", "resume.pt")):
        records = sorted(ssl.lab.runs_folder().glob("*/record.json"))
        known("run", str(args.run), [str(record.parent) for record in records])
    ssl.devices.pick_device(args.device)  # before anything is loaded
    run = ssl.records.Run.open(args.run)
    encoder = ssl.evaluate.load_encoder(run)
    trained_on = run.record["dataset"] or {"size": 64}
    data = ssl.batch.grid.dataset(args.dataset or ssl.evaluate.place_of(trained_on), Path.cwd())
    if not args.dataset and data not in ssl.images.CATALOGUE:
        split = "pretrain" if trained_on["split"] == "all" else trained_on["split"]
        same, limits = (data, split, trained_on["size"]), (None, trained_on["images"])  # all, or by --limit
        prints = (ssl.images.load(*same, limit=limit).fingerprint for limit in limits)
        if trained_on["fingerprint"] not in prints:
            raise Unknown(f"the images in {data} are not those trained on: name them with --dataset")
    size = args.size or trained_on["size"]
    stores = labelled(args, data, size)
    prefix = f"{stores[0].name}_" if args.dataset and stores else ""
    prefix += "" if size == trained_on["size"] else f"{size}px_"
    epochs = ssl.evaluate.FINE_TUNE_EPOCHS if args.fine_tune else None
    return judge(args, run, encoder, stores, prefix, epochs)


def bench(args) -> int:
    folder = ssl.batch.grid.notebooks().parent / "tests" / "benchmarks"
    if not folder.is_dir():
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
    top.add_argument("--version", action="version", version=ssl.__version__)
    verbs = top.add_subparsers(required=True, metavar="COMMAND")

    def command(function, text: str, example: str, group=verbs, json=True):
        name = example.split()[0 if group is verbs else 1]
        epilog = f"example: ssl-lessons {example}"
        verb = group.add_parser(name, help=text, description=text, epilog=epilog)
        verb.set_defaults(function=function, kept="")
        if json:
            verb.add_argument("--json", action="store_true", help="print JSON; all else to standard error")
        return verb.add_argument

    setting = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE"), "help": "set one"}
    limit = {"help": "use at most so many images of each split"}
    device = {"default": "auto", "help": "auto, cpu, cuda, cuda:0 or mps"}
    command(doctor, "what this machine has, and whether anything is broken", "doctor")
    data = verbs.add_parser("data", help="list or fetch datasets", epilog="example: ssl-lessons data list")
    data = data.add_subparsers(required=True, metavar="ACTION")
    command(data_list, "the datasets known by name", "data list --json", data)
    example = "data fetch imagenette --size 160"
    option = command(data_fetch, "download, verify and unpack a dataset", example, data)
    option("name", metavar="NAME")
    option("--size", default=160, help="short side of the archive's images: 160 or 320")

    example = "run 03 --profile class --dataset imagenette -p epochs 20"
    option = command(run, "execute a lesson into runs/…, with an HTML copy", example)
    option("lesson", metavar="LESSON", help="a number, a name, or the path of a notebook")
    option("--profile", help="auto, smoke, class or full")
    option("--dataset", help="a name from `data list`, or a folder of images")
    option("--minutes", help="end the run as failed after so long")
    option("--out", help="folder of the run (default: runs/LESSON-DATASET-PROFILE-TIME-PROCESS)")
    option("-p", **setting)

    text = "execute a notebook over a grid of parameters; again to go on where it stopped"
    option = command(grid, text, "grid notebooks/grids/methods_on_shapes.yaml --jobs 2")
    option("file", metavar="FILE", help="a grid in YAML, such as those in notebooks/grids/")
    option("--out", metavar="DIR", help="folder of the runs (default: runs/NAME-OF-FILE)")
    option("--jobs", metavar="N", help="side by side (default: one for each GPU, else one)")
    option("--scheduler", metavar="URL", help="tcp://…: on a Dask scheduler's workers, who share our folders")
    option("--minutes", help="end a run as failed after so long")
    option("--dry-run", action="store_true", help="list the runs, and which are finished")

    text = "train a method without labels, then judge its encoder; again to go on after an interruption"
    example = "pretrain --dataset shapes --network conv4 --epochs 3 -p temperature 0.1 --out runs/first"
    option = command(pretrain, text, example)
    option("--out", required=True, help="folder of the run")
    option("--method", default="moco", help="simclr, moco (default), relational, byol or simsiam")
    option("--recipe", default="short", help="settings by name (default: short, made for runs of minutes)")
    option("--network", default="resnet10_half", help="conv4, resnet10_half (default), resnet18, timm/NAME")
    option("--stem", choices=("imagenet", "small", "pool", "stride"), help="default: by --crop")
    option("--dataset", default="shapes", help="a name from `data list`, or a folder of images")
    option("--size", default=64, help="side of the stored images, pixels (default: 64)")
    option("--crop", default=48, help="side of the views, pixels (default: 48)")
    option("--epochs", help="default: the recipe's")
    option("--batch-size", help="default: the recipe's")
    option("--seed", default=0)
    option("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    option("-p", **setting)
    option("--limit", **limit)
    option("--device", **device)

    text = "judge a run's encoder beside a random one: kNN, linear probes with 100, 10 and 1 %% of the labels"
    option = command(evaluate, text, "evaluate runs/first --dataset imagewoof")
    option("run", metavar="RUN", help="the folder of a run")
    option("--dataset", help="judge on another dataset than the run's own")
    option("--size", help="side of the stored images (default: the run's)")
    option("--fine-tune", action="store_true", help="also train the whole network with a part of the labels")
    option("--limit", **limit)
    option("--device", **device)

    text = "run records as a table: mean ± std over seeds, ranked, nothing averaged that may not be"
    example = "leaderboard runs/leaderboard --metric linear_10 --figure leaderboard.png"
    option = command(leaderboard, text, example, json=False)
    option("runs", metavar="RUNS", nargs="*", help="records, or folders of them; none: the committed ones")
    option("--metric", default="knn", help="what ranks: knn (default), linear_100, linear_10, linear_1, …")
    option("--figure", metavar="FILE", help="draw accuracy against wall-clock as well, PNG, SVG or PDF")
    for form in ("markdown", "html", "json", "csv"):
        option(f"--{form}", dest="form", action="store_const", const=form, default="text", help=f"as {form}")

    option = command(bench, "run a benchmark of tests/benchmarks/", "bench views", json=False)
    option("name", metavar="NAME", help="views, …")
    option("arguments", nargs=argparse.REMAINDER, help="handed to the benchmark; try --help")
    return top


NUMBERS = {name: Parameter("int", 1) for name in ("limit", "size", "crop", "epochs", "batch_size", "jobs")}
NUMBERS |= {"seed": Parameter("int", 0), "minutes": Parameter("float", 1.0)}
OPTIONS = {name: name for name in ("profile", "dataset", "epochs", "batch_size")}  # set what -p may name
OPTIONS |= {"run_dir": "out", "name": "recipe", "source": "recipe"}


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The arguments, each number and each folder among them checked as everywhere."""
    args = parser().parse_args(argv)
    pairs = vars(args).get("p", [])
    for name, value in pairs:
        if dict(pairs)[name] != value or vars(args).get(OPTIONS.get(name)) is not None:
            raise Unknown(f"{name} is set in two places, by -p {name} {value} and beside it; leave one out")
    for name, value in vars(args).items():
        if name in NUMBERS and value is not None:
            setattr(args, name, parameters.fit(name, value, NUMBERS[name]))
        if name in ("out", "run") and isinstance(value, str):
            setattr(args, name, parameters.folder(value))
    return args


def _stop(number: int, _) -> None:
    raise KeyboardInterrupt(number)


def main(argv: list[str] | None = None) -> int:
    """The command line: returns its exit code."""
    sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()  # None: closed, by >&-
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")
    stops = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}  # Slurm, a closed terminal
    main_thread = threading.current_thread() is threading.main_thread()
    stops = [number for number in stops if main_thread and signal.getsignal(number) == signal.SIG_DFL]
    for number in stops:  # nohup's stays ignored
        signal.signal(number, _stop)
    args = argparse.Namespace(kept="")
    try:
        args = parsed(argv)
        args.stdout = sys.stdout
        with contextlib.redirect_stdout(sys.stderr if vars(args).get("json") else sys.stdout):
            code = args.function(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        warn(f"ssl-lessons: stopped{args.kept}")
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    except BrokenPipeError:  # `| head` has read what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE
    except Exception as error:
        ours = type(error).__module__.startswith("ssl_lessons.")
        if not isinstance(error, ValueError | OSError) and not ours:
            raise  # a bug: show all of it
        warn(f"ssl-lessons: {error}")
        return USAGE if isinstance(error, Unknown) else FAILED
    finally:
        for number in stops:
            signal.signal(number, signal.SIG_DFL)
