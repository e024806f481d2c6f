"""The committed benchmarks as Markdown: what README.md says of speed, memory and minutes."""

import json
from collections.abc import Sequence
from pathlib import Path

from ssl_lessons.records import results_folder

PROFILES = ("smoke", "class", "full")
_HALF = "(relational reasoning: half of it, four views each)"  # what its batch is, in the captions


def committed(name: str, folder: Path | None = None) -> dict | None:
    """What `ssl-lessons bench NAME --json data/results/bench-NAME.json` wrote, or None."""
    path = (folder or results_folder()) / f"bench-{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _rows(heads: Sequence[str], rows: Sequence[Sequence]) -> str:
    lines = ["|" + "|".join(f" {cell} " for cell in row) + "|" for row in (heads, *rows)]
    return "\n".join([lines[0], "|---|" + "--:|" * (len(heads) - 1), *lines[1:]])


def _where(found: dict, *names: str) -> str:
    machine, names = found["machine"], ("torch", *names)
    versions = ", ".join(f"{n} {v}" for n in names if (v := machine["versions"].get(n)))
    load = machine.get("load_before")
    busy = f", load average before {load:.1f}" if load is not None else ""
    return f"{machine['device']}, {machine['date']}{busy}; {versions}"


def step(found: dict) -> str:
    """A training step of each method beside the bare model and the peers."""
    s, plain = found["settings"], {}
    heads = ("method", "precision", "ours", "bare model", "over bare", "bare, our kernels", "over these")
    heads += ("lightly", "ours / lightly", "… / lightly fp32", "byol-pytorch", "ours / byol-pytorch")
    for row in found["rows"]:
        if row["precision"] == "fp32":
            plain[row["method"]] = row["images_per_second"].get("lightly")
    rows = []
    for row in found["rows"]:
        rate = row["images_per_second"]
        peer, other, base = rate.get("lightly"), rate.get("byol-pytorch"), plain.get(row["method"])
        shown = [f"{rate['ours']:.0f}"]
        for name in ("bare", "bare, our kernels"):  # a GPU has but one
            shown += [f"{rate[name]:.0f}", f"{row['over'][name]:+.1%}"] if name in rate else ["–", "–"]
        for value, form in (
            (peer, ".0f"),
            (peer and rate["ours"] / peer, ".2f"),
            (base and rate["ours"] / base, ".2f"),
            (other, ".0f"),
            (other and rate["ours"] / other, ".2f"),
        ):
            shown.append(f"{value:{form}}" if value else "–")
        rows.append((row["method"], row["precision"], *shown))
    text = (
        f"Source images a second, {s['data']}, {s['network']}, views of {s['size']} px, batch {s['batch']} "
        f"{_HALF}, medians of {s['rounds'] * s['turns']} turns "
        f"(the peers': of {s['rounds'] * s['turns'] * s['steps']} single steps); "
        f"lightly with {s['workers']} loader processes on its JPEG files, byol-pytorch on ready tensors. "
        "*Over*: how much longer our step takes than the bare model in the column before, the median of "
        "paired turns. "
        f"{_where(found, 'torchvision', 'lightly', 'byol-pytorch')}."
    )
    return f"{text}\n\n{_rows(heads, rows)}"


def views(found: dict) -> str:
    """Views a second beside the peers."""
    rows = []
    for size, one in found["sizes"].items():
        rate = {name: r.get("views_per_second") for name, r in one["results"].items()}
        rows.append((f"{size} px", *(f"{rate[name]:,.0f}" if rate.get(name) else "–" for name in rate)))
    names = list(next(iter(found["sizes"].values()))["results"])
    text = f"Views a second, MoCo v2's policy. {_where(found, 'torchvision', 'lightly', 'kornia')}."
    return f"{text}\n\n{_rows(('', *names), rows)}"


def scale(found: dict) -> str:
    """Slopes: how time and memory grow."""
    rows = []
    for one in found["series"]:
        ends = " → ".join(f"{x:,}" for x in (one["x"][0], one["x"][-1]))
        time = " → ".join(f"{one['seconds'][i]:.2f}" for i in (0, -1))
        size = " → ".join(f"{one['bytes'][i] / 2**20:,.0f}" for i in (0, -1))
        slopes = [f"{one['slopes'][what]:.2f}" for what in ("seconds", "bytes")]
        said = {"network": "{}", "size": "{} px", "batch": "batch {}"}
        fixed = ", ".join(said[name].format(one["fixed"][name]) for name in said if name != one["name"])
        rows.append((one["label"], ends, fixed, f"{one['timed']}: {time}", slopes[0], size, slopes[1]))
    heads = ("what grows", "from → to", "of", "seconds", "exponent", "memory added, MiB", "exponent")
    s = found["settings"]
    text = (
        f"How a run grows, synthetic images, {s['precision']} (1 is linear, 0 flat); the smallest of "
        f"{s['rounds']} processes. {_where(found)}."
    )
    return f"{text}\n\n{_rows(heads, rows)}"


def memory(found: dict) -> str:
    """Peak memory of each method."""
    s, rows = found["settings"], []
    for row in found["rows"]:
        kept, back = row["kept"], row["given_back"]
        sizes = [f"{kept[name] / 2**20:,.0f}" for name in ("images", "weights", "gradients", "host")]
        sizes.append(f"{kept['device'] / 2**20:,.0f}" if kept["device"] else "–")
        rows.append((row["method"], *sizes, f"{back['host'] / 2**20:,.0f}", f"{row['gain']:+.1%}"))
    heads = ("MiB", "images", "weights", "gradients, moments", "added by the run", "device peak")
    heads += ("added, freed memory given back", "time then")
    text = (
        f"Peak memory of training, {s['data']} stored at {s['stored']} px, views of {s['size']} px, batch "
        f"{s['batch']} {_HALF}, {s['precision']}; the images' "
        "file lies in the system's cache beside it. Moments: SGD's momentum, or the two of Adam, with which "
        f"relational reasoning trains. {_where(found)}."
    )
    return f"{text}\n\n{_rows(heads, rows)}"


def far(found: dict) -> str:
    """Images beyond the budget beside images on the device."""
    s = found["settings"]
    names = ("resident", "far", "far, not ahead")
    rows = []
    for name in names:
        turns = found["turns"][name]
        spread = f"{min(turns):,.0f} to {max(turns):,.0f}"
        rows.append((name, f"{found[name]:,.0f}", spread, f"{found[name] / found['resident']:.1%}"))
    text = (
        f"Training from a file of {found['bytes'] / 2**20:,.0f} MiB with a budget of "
        f"{found['budget'] / 2**20:,.0f} MiB, dropped from the system's cache before each epoch; "
        f"{s['network']}, views of {s['size']} px, batch {s['batch']}, {s['precision']}; medians of "
        f"{s['rounds']} turns. {_where(found)}."
    )
    return f"{text}\n\n{_rows(('', 'images a second', 'turns from … to', 'of resident'), rows)}"


def convolution(found: dict) -> str:
    """Convolutions on maps of few pixels beside PyTorch's own."""
    rows = {(row["convolution"], row["precision"], row["batch"]): row for row in found["rows"]}
    columns = list(dict.fromkeys(where[1:] for where in rows))
    lines = [
        (name, *(_beside(rows.get((name, *column))) for column in columns))
        for name in dict.fromkeys(where[0] for where in rows)
    ]
    heads = ("channels, input", *(f"{precision}, batch {batch}" for precision, batch in columns))
    text = (
        "Convolutions on maps of few pixels, and linear layers, forward and backward: PyTorch's ms / ours; "
        f"in strong type where `pretrain` takes ours. {_where(found)}."
    )
    return f"{text}\n\n{_rows(heads, lines)}"


def _beside(row: dict | None) -> str:
    if row is None:
        return "–"
    theirs, mine = row["PyTorch"], row["ours"]
    text = f"{1e3 * theirs:.1f} / {1e3 * mine:.1f} = {theirs / mine:.1f}"
    return f"**{text}**" if row["used"] else text


SECTIONS = {
    "step": step,
    "convolution": convolution,
    "views": views,
    "far": far,
    "scale": scale,
    "memory": memory,
}


def readme(folder: Path | None = None) -> str:
    """What stands between README.md's markers `speed`: a table for each committed benchmark."""
    found = {name: committed(name, folder) for name in SECTIONS}
    return "\n\n".join(SECTIONS[name](each) for name, each in found.items() if each)


def lesson_minutes(folder: Path | None = None) -> list[dict]:
    """How long whole lessons took: rows of lesson, profile, dataset, device and seconds.

    From `bench lesson`, and from the committed records, which the lessons themselves close with their time.
    """
    folder = folder or results_folder()
    rows = list((committed("lesson", folder) or {"rows": []})["rows"])
    for path in sorted(folder.glob("[0-9][0-9]-*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            row = {
                "lesson": path.stem[:2],
                "profile": record["profile"],
                "dataset": record["dataset"]["name"],
            }
            rows.append({**row, "device": record["device"], "seconds": record["lesson_seconds"]})
        except (ValueError, KeyError, TypeError):  # a damaged record, or of a lesson that did not finish
            continue
    return rows


def minutes(folder: Path | None = None) -> str:
    """What stands between README.md's markers `minutes`: a row a lesson, a column a profile and device."""
    found = lesson_minutes(folder)
    columns = sorted({(r["profile"], r["device"]) for r in found}, key=lambda c: (PROFILES.index(c[0]), c[1]))
    rows = []
    for lesson in sorted({row["lesson"] for row in found}):
        cells = []
        for profile, device in columns:
            here = [r for r in found if (r["lesson"], r["profile"], r["device"]) == (lesson, profile, device)]
            shown = [
                f"{r['seconds'] / 60:.1f}" + (f" ({r['dataset']})" if len(here) > 1 else "") for r in here
            ]
            cells.append(", ".join(shown) or "–")
        rows.append((lesson, *cells))
    heads = ("lesson", *(f"`{profile}`, {device}" for profile, device in columns))
    return f"Minutes for a whole lesson.\n\n{_rows(heads, rows)}"
