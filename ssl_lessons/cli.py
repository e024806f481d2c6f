"""`ssl-lessons …`: the arguments of its commands. What they do is in commands.py.

Exit codes: 0 it worked; 1 it ran and failed, or `doctor` or `data verify` found something broken; 2 it was
asked for something that does not exist (the answer lists what does); 130 it was interrupted.
"""

import argparse
import sys

from ssl_lessons import __version__, commands
from ssl_lessons.parameters import Unknown

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="ssl-lessons",
        description="Self-supervised learning, step by step: data, lessons, training runs, judgement.",
        epilog="example: ssl-lessons run 03 --profile class --dataset shapes",
    )
    top.add_argument("--version", action="version", version=__version__)
    verbs = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(group, name: str, function, text: str, example: str, *parents):
        example = f"example: ssl-lessons {example}"
        made = group.add_parser(name, help=text, description=text, epilog=example, parents=parents)
        made.set_defaults(function=function)
        return made.add_argument

    def shared(*names, **options):
        made = argparse.ArgumentParser(add_help=False)
        made.add_argument(*names, **options)
        return made

    as_json = shared("--json", action="store_true", help="print JSON; everything else goes to standard error")
    settings = shared(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set one by name"
    )
    limit = shared("--limit", type=int, help="use at most so many images of each split")
    device = shared("--device", default="auto", help="auto, cpu, cuda or cuda:0")

    command(
        verbs,
        "doctor",
        commands.doctor,
        "what this machine has, and whether anything is broken",
        "doctor",
        as_json,
    )

    text = "list, fetch or verify datasets"
    data = verbs.add_parser("data", help=text, description=text, epilog="example: ssl-lessons data list")
    data = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    command(data, "list", commands.data_list, "the datasets known by name", "data list --json", as_json)
    text = "download, verify and unpack a dataset"
    option = command(data, "fetch", commands.data_fetch, text, "data fetch imagenette --size 160", as_json)
    option("name", metavar="NAME")
    option("--size", type=int, default=160, help="short side of the archive's images: 160 or 320")
    text = "check what is on disk against the checksums"
    option = command(data, "verify", commands.data_verify, text, "data verify imagenette", as_json)
    option("name", metavar="NAME", nargs="?")

    text = "execute a lesson into runs/…, with an HTML copy"
    example = "run 03 --profile class --dataset imagenette -p epochs 20"
    option = command(verbs, "run", commands.run, text, example, settings, as_json)
    option("lesson", metavar="LESSON", help="a number, a name, or the path of a notebook")
    option("--profile", help="auto, smoke, class or full")
    option("--dataset", help="a name from `data list`, or a folder of images")
    option("--out", help="folder of the run (default: runs/LESSON-DATASET-PROFILE-TIME)")

    text = "execute a notebook over a grid of parameters; again to go on where it stopped"
    example = "grid notebooks/grids/methods_on_shapes.yaml --out runs/shapes --jobs 2"
    option = command(verbs, "grid", commands.grid, text, example, as_json)
    option("file", metavar="FILE", help="a grid in YAML, such as those in notebooks/grids/")
    option("--out", metavar="DIR", help="folder of the runs (default: runs/NAME-OF-FILE)")
    option("--jobs", type=int, metavar="N", help="side by side (default: one for each GPU, else one)")
    option("--scheduler", metavar="URL", help="tcp://…: on a Dask scheduler's workers, who share our folders")
    option("--dry-run", action="store_true", help="list the runs, and which are finished")

    text = "train a method without labels, then judge its encoder; again to go on after an interruption"
    example = "pretrain --dataset shapes --network conv4 --epochs 3 -p temperature 0.1 --out runs/first"
    option = command(verbs, "pretrain", commands.pretrain, text, example, settings, limit, device, as_json)
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

    text = "judge a run's encoder beside a random one: kNN, linear probes with 100, 10 and 1 %% of the labels"
    example = "evaluate runs/first --dataset imagewoof"
    option = command(verbs, "evaluate", commands.evaluate, text, example, limit, device, as_json)
    option("run", metavar="RUN", help="the folder of a run")
    option("--dataset", help="judge on another dataset than the run's own")
    option("--size", type=int, help="side of the stored images (default: the run's)")
    text = "also let the whole network go on learning from 100, 10 and 1 %% of the labels"
    option("--fine-tune", action="store_true", help=text)

    text = "run records as a table: mean ± std over seeds, ranked, nothing averaged that may not be"
    example = "leaderboard runs/leaderboard --metric linear_10 --figure leaderboard.png"
    forms = argparse.ArgumentParser(add_help=False)
    form = forms.add_mutually_exclusive_group().add_argument
    for name in ("markdown", "html", "json", "csv"):
        form(f"--{name}", dest="form", action="store_const", const=name, help=f"print {name}, not plain text")
    option = command(verbs, "leaderboard", commands.leaderboard, text, example, forms)
    option("runs", metavar="RUNS", nargs="*", help="records, or folders of them; none: the committed ones")
    option("--metric", default="knn", help="what ranks: knn (default), linear_100, linear_10, linear_1, …")
    option("--figure", metavar="FILE", help="draw accuracy against wall-clock as well, PNG, SVG or PDF")
    option("--into", metavar="FILE", help="put Markdown between the file's markers <!-- results -->")

    option = command(verbs, "bench", commands.bench, "run a benchmark of tests/benchmarks/", "bench views")
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
