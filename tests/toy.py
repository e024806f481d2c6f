"""A small notebook that stands for a lesson, and grids over it.

It "trains" in epochs, each a checkpoint, ends with a record whose numbers depend on every one of them, and
notes who wrote when, so that a test sees two writers in one folder.
"""

import json
from pathlib import Path

import nbformat
import yaml

PARAMETERS = """profile: str = "auto"
dataset: str = ""
run_dir: str = ""
method: str = "simclr"
seed: int = 0
lr: float = None
focal: bool = False
epochs: int = 4
seconds: float = 0.4  # of all epochs
wanted: str = ""  # a file without which the notebook fails
deadly: bool = False  # the notebook kills its kernel"""
TRAIN = """import json, os, random, time
from pathlib import Path

folder = Path(run_dir)
checkpoint = folder / "checkpoint.json"
state = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"values": [], "starts": 0}


def save():
    part = folder / f"checkpoint.{os.getpid()}"
    part.write_text(json.dumps(state))
    os.replace(part, checkpoint)


state["starts"] += 1
save()
while len(state["values"]) < epochs:
    time.sleep(seconds / epochs)
    state["values"].append(random.Random(f"{method} {seed} {lr} {state['values']}").random())
    with open(folder / "writers", "a") as file:
        file.write(f"{os.getpid()}\\n")
    save()
    print("epoch", len(state["values"]))"""
HARM = """if deadly:
    os._exit(9)
if wanted and not Path(wanted).exists():
    raise RuntimeError(f"{wanted} is not there\\nand this is more of it")"""
RECORD = """record = {"schema": 1, "versions": {}, "device": "none", "dataset": None, "recipe": profile}
record |= {"seed": seed, "seconds": seconds, "history": state["values"], "starts": state["starts"]}
record["metrics"] = {"knn": {"value": state["values"][-1], "protocol": "none"}}
(folder / "part.json").write_text(json.dumps(record))
os.replace(folder / "part.json", folder / "record.json")"""

TWELVE = {"method": ["simclr", "moco", "byol"], "seed": "0-3"}


def by_itself(folder: Path, **parameters) -> dict:
    """The record of the notebook's cells, executed here and now in an empty folder."""
    names = {}
    exec(PARAMETERS, names)
    names |= {"run_dir": str(folder), "seconds": 0.0, "profile": "smoke", **parameters}
    exec(f"{TRAIN}\n{RECORD}", names)
    return json.loads((folder / "record.json").read_text())


def write(folder: Path, **parts) -> Path:
    """A grid's file over the notebook, both written into `folder`; a part that is None is left out."""
    cells = [nbformat.v4.new_code_cell(source) for source in (PARAMETERS, TRAIN, HARM, RECORD)]
    cells[0].metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "toy.ipynb")
    plan = {"notebook": "toy.ipynb", "profile": "smoke", "grid": TWELVE, **parts}
    plan = {key: value for key, value in plan.items() if value is not None}
    file = folder / "toy.yaml"
    file.write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
    return file
