"""The project's promises about itself: packaging, layout, README and notebooks."""

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

import ssl_lessons

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it there

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SLUG = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
NOTEBOOKS = sorted([*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "notebooks" / "grids").glob("*.ipynb")])
DEMANDED = [f"{number:02d}" for number in range(12)]  # lessons

# The order in which data meets the files: each imports only from those before it.
ORDER = ["parameters", "shapes", "images", "policies", "views", "networks", "processes"]
ORDER += ["methods.base", "methods.recipes", "methods.*", "devices", "optim", "records", "fast"]
ORDER += ["training", "evaluate"]
ORDER += ["diagnose", "figures.palette", "figures.plots"]
ORDER += ["figures.pictures", "lab.checks", "lab.evidence", "lab.experiments", "lab.lesson"]
ORDER += ["batch.leaderboard", "batch.grid", "cli"]
ORDER += ["__main__"]


def text_files():
    """Text files of the checkout that git does not ignore; without git, all but the known outputs."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )
        files = [ROOT / name for name in listed if name]
    except (FileNotFoundError, subprocess.CalledProcessError):
        ignored = {".venv", "runs", "data", "build", "__pycache__"}
        ignored |= {".hypothesis", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints"}  # of other tests
        ignored |= {path.name for path in ROOT.glob("*.egg-info")}  # of the install
        files = [p for p in ROOT.rglob("*") if p.is_file() and not ignored & set(p.relative_to(ROOT).parts)]
    kinds = {".py", ".md", ".toml", ".yml", ".yaml", ".ipynb", ".json", ""}
    return [path for path in files if path.is_file() and path.suffix in kinds]


# ---------------------------------------------------------------------------------------------- packaging


def test_environment_is_in_step_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    plain = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = (item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert environment["name"] == PROJECT["name"]
    assert plain == [f"python{PROJECT['requires-python']}", "pip"]
    assert pip == ["-e .[test]"]  # whatever pyproject.toml asks for, and nothing beside it
    assert "test" in PROJECT["optional-dependencies"]


def test_dependencies_have_lower_bounds_and_no_pins():
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    for line in [*PROJECT["dependencies"], *extras]:
        name, bounds = re.fullmatch(r"([A-Za-z0-9_-]+)(.*)", line).groups()
        first, *others = bounds.split(",")
        assert re.fullmatch(r">=[\d.]+", first), f"{name}: {bounds!r} has no lower bound"
        assert all(re.fullmatch(r"!=[\d.]+", other) for other in others), (
            f"{name}: {bounds!r} is more than that"
        )


def test_floors_are_the_lower_bounds_and_a_job_of_ci_installs_them():
    expected = []
    for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]:
        name, bound = re.match(r"([A-Za-z0-9_-]+)>=([\d.]+)", line).groups()
        expected.append(f"{name}=={bound}")
    floors = ROOT / ".ci" / "floors.txt"
    assert floors.read_text(encoding="utf-8").splitlines() == expected
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["lower-bounds"]["env"] == {"PIP_CONSTRAINT": ".ci/floors.txt"}


def test_broken_fastprogress_releases_are_excluded():
    (line,) = (line for line in PROJECT["dependencies"] if line.startswith("fastprogress"))
    assert {f"!=1.1.{patch}" for patch in range(5)} <= set(line.split(","))


def test_changelog_speaks_of_this_version():
    assert f"\n## {ssl_lessons.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_ci_runs_what_the_readme_says():
    run = ROOT / ".ci" / "run"
    assert os.access(run, os.X_OK)
    subprocess.run(["bash", "-n", str(run)], check=True)
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    for name, job in workflow["jobs"].items():
        assert job["steps"][-1] == {"run": ".ci/run"}, name
    assert workflow[True]["schedule"]  # YAML 1.1 reads the key `on` as true


@pytest.mark.parametrize(
    "command", [["check", "--output-format=concise"], ["format", "--check"]], ids=lambda c: c[0]
)
def test_ruff(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


# ---------------------------------------------------------------------------------------------- the package


def place(module: str) -> int:
    """Where a module (name without `ssl_lessons.`) stands in the order."""
    if module in ORDER:
        return ORDER.index(module)
    files = [name for name in ORDER if name.startswith(f"{module}.")]
    if files:  # a folder stands where its last file does
        return ORDER.index(files[-1])
    if module.startswith("methods."):
        return ORDER.index("methods.*")
    raise AssertionError(f"ssl_lessons.{module} has no place in the order of the files")


def imported(path: Path):
    """The package's modules that a file imports, at its top or in a function, without `ssl_lessons.`."""
    inside = path.relative_to(ROOT / "ssl_lessons").with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join(("ssl_lessons", *inside[: len(inside) - node.level])) if node.level else node.module
            )
            base = f"{base}.{node.module}" if node.level and node.module else base
            found = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in found:
            parts = name.split(".")
            if parts[0] != "ssl_lessons":
                continue
            for end in range(
                len(parts), 1, -1
            ):  # the longest prefix that is a module; the rest is a name in it
                if (ROOT / Path(*parts[:end])).with_suffix(".py").exists():
                    yield ".".join(parts[1:end])
                    break


SOURCES = sorted((ROOT / "ssl_lessons").rglob("*.py"))


def test_the_package_only_shrinks():
    """2,600 lines of core (without the drawn dataset) and 4,600 in all are the aim: it stands here. (It stood
    at 4,542 and 7,229 before what two rounds of attacks found was mended: test_setup.py, test_numbers.py. 61
    lines of the package are fast.py: without it a ResNet-18's step was a third slower than it had been. What
    lessons and commands run in normal use were 4,222 and 6,628 lines of 4,984 and 7,789.)
    """
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    rooms = {"lab", "figures", "batch"}
    outside = {"shapes.py", "fast.py", "cli.py", "__init__.py", "__main__.py"}
    core = [path for path in lines if path.name not in outside and path.parent.name not in rooms]
    assert sum(lines[path] for path in core) <= 4_897
    assert sum(lines.values()) <= 7_658


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_file_imports_only_from_files_above_it(path):
    if path.name == "__init__.py":
        room = ".".join(path.parent.relative_to(ROOT / "ssl_lessons").parts)
        others = [name for name in imported(path) if not (room and name.startswith(f"{room}."))]
        assert not others, "a package's __init__ imports nothing but its own files"
        return
    mine = ".".join(path.relative_to(ROOT / "ssl_lessons").with_suffix("").parts)
    for other in imported(path):
        above = place(other) < place(mine)
        assert above, f"{mine} imports {other}, which stands beside or below it"


def test_import_order_check_sees_what_it_should():
    package = ROOT / "ssl_lessons"
    assert "views" in list(imported(package / "methods" / "base.py"))
    assert {"methods.base", "networks"} <= set(imported(package / "methods" / "moco.py"))
    assert "parameters" in list(imported(package / "cli.py"))


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    ).stdout.strip()


def test_importing_the_package_loads_no_library():
    heavy = "{'torch', 'torchvision', 'jupyterlab', 'papermill', 'matplotlib', 'nbformat', 'accelerate'}"
    for module in ("ssl_lessons", "ssl_lessons.cli"):
        assert fresh(f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))") == ""


def test_every_public_name_can_be_had():
    for name in ssl_lessons.__all__:
        assert getattr(ssl_lessons, name) is not None
        assert name in dir(ssl_lessons)
    with pytest.raises(AttributeError, match="MoCo"):
        _ = ssl_lessons.no_such_name


# ---------------------------------------------------------------------------------------------- README


def quick_start() -> str:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## Quick start\n(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    return section


def test_quick_start_has_exactly_two_bash_blocks():
    fences = re.findall(r"^```(\w*)$", quick_start(), re.MULTILINE)
    assert fences == ["bash", "", "bash", ""]
    first, second = re.findall(r"^```bash\n(.*?)^```$", quick_start(), re.MULTILINE | re.DOTALL)
    for block in (first, second):  # each sets up by itself
        assert "-m venv" in block and "activate" in block and "pip install -e" in block
    assert "ssl-lessons run 03" in first and "--dataset shapes" in first
    assert '".[test]"' in second and "\npython -m pytest" in second


def test_repository_address_stands_in_one_place():
    """Colab reads no pyproject.toml: links to it and installs from it repeat the address, kept in step."""
    wanted = PROJECT["urls"]["Repository"]
    for path in text_files():
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT).as_posix()
        for slug, rest in re.findall(
            r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)(/[^\s)\"'\\]*)?", text
        ):
            assert slug == SLUG, f"{name} links to {slug} on Colab, not to {SLUG}"
            target = rest.removeprefix("/blob/main/")
            assert (ROOT / target).is_file(), f"{name}: the Colab link's {target} does not exist"
        if name == "pyproject.toml":
            assert text.count(wanted) == 1
        elif path.suffix != ".ipynb":
            assert wanted not in text, f"{name} repeats the repository's address"
        for owner in re.findall(rf"github\.com/([\w.-]+)/{PROJECT['name']}\b", text):
            assert f"{owner}/{PROJECT['name']}" == SLUG, f"{name} names another owner, {owner}"


def test_every_lesson_has_a_colab_link_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        place = path.relative_to(ROOT).as_posix()
        assert f"https://colab.research.google.com/github/{SLUG}/blob/main/{place}" in readme


def test_readme_shows_what_the_lessons_and_the_records_say():
    script = runpy.run_path(str(ROOT / "notebooks" / "readme.py"))
    for page, sections in script["SECTIONS"].items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for name, section in sections.items():
            shown = text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip()
            assert shown == section(), "run `python notebooks/readme.py`"
            assert len(shown.splitlines()) > 10, name


def test_local_links_lead_somewhere():
    for path in (p for p in text_files() if p.suffix == ".md"):
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            if not link.startswith(("http:", "https:", "#", "mailto:")):
                target = path.parent / link.split("#")[0]
                assert target.exists(), f"{path.relative_to(ROOT)} links to {link}, which does not exist"


# ---------------------------------------------------------------------------------------------- notebooks


def test_the_lessons_are_there():
    assert set(DEMANDED) <= {path.stem[:2] for path in NOTEBOOKS}


def test_the_lessons_set_colab_up_alike():
    first = {path.stem: code_cells(nbformat.read(path, as_version=4))[0].source for path in NOTEBOOKS}
    assert "\n    %pip install -q --no-deps" in first["03_moco"]  # a line that runs, not a comment
    assert [name for name in first if first[name] != first["03_moco"]] == []


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def lesson(request):
    """Path and content of each notebook in turn."""
    return request.param, nbformat.read(request.param, as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_notebook_is_valid_with_unique_ids_and_small(lesson):
    path, notebook = lesson
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5), "cell ids came with format 4.5"
    ids = [cell["id"] for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert path.stat().st_size < 1_000_000


def test_notebook_was_executed_in_order_without_errors(lesson):
    _, notebook = lesson
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "run it from a fresh kernel, all cells, in order"
    for cell in code_cells(notebook):
        assert cell.source.strip(), f"cell {cell['id']} is empty"
        assert not [out for out in cell.outputs if out.output_type == "error"], f"cell {cell['id']} failed"
        tags = cell.metadata.get("tags", [])
        assert "raises-exception" not in tags, "passes even if nothing is raised, and fails under papermill"
        if "nbval-check-output" in tags:  # without a stored output nbval compares nothing, silently
            assert cell.outputs, f"cell {cell['id']} is marked for comparison and has no output"


def test_notebook_has_one_parameters_cell_with_a_profile(lesson):
    _, notebook = lesson
    tagged = [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert re.search(r"^profile\b.*=", tagged[0].source, re.MULTILINE)
    injected = [cell for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assert not injected, "commit the lesson with its own parameters, not a batch run's"


def words_of(notebook) -> str:
    """Everything a reader or a tool can read in a notebook, without the bytes of its pictures."""
    words = [json.dumps(notebook.metadata)]
    for cell in notebook.cells:
        words += [json.dumps(cell.metadata), cell.source]
        for out in cell.get("outputs", []):
            shown = [data for kind, data in out.get("data", {}).items() if not kind.startswith("image/")]
            words += [out.get("text", ""), *map(str, shown)]
    return re.sub(r"base64,[A-Za-z0-9+/=\s]+", "", "\n".join(words))


def test_notebook_names_no_machine_and_pins_no_version(lesson):
    _, notebook = lesson
    words = words_of(notebook)
    paths = re.findall(
        r"(?<![\w./-])(?:/(?:home|root|Users|opt|work|tmp|var|mnt)/|[A-Z]:\\Users)[^\s\"']*", words
    )
    assert not paths, f"machine paths: {sorted(set(paths))[:5]}"
    pins = re.findall(r"pip install[^\n]*==\s*\d[^\s\"']*", words)
    assert not pins, f"pinned versions: {pins}"
