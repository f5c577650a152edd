"""The line of modules: each imports only from its left, and outside parts have one place each."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import scapedist
from scapedist.landscape import PRELOADED

ROOT = Path(scapedist.__file__).parent
LINE = [
    "errors",
    "plan",
    "backend",
    "files",
    "model",
    "analysis",
    "settings",
    "store",
    "workers",
    "report",
    "sources",
    "stages",
    "particles",
    "landscape",
    "cli",
]
ONLY_IN = {
    "cupy": {"backend"},
    "cuml": {"backend"},
    "sklearn": {"backend"},
    "threadpoolctl": {"backend"},
    "umap": {"backend"},
    "cryodrgn": {"model"},
    "torch": {"model", "workers", "particles", "landscape"},  # threads; maps as tensors; speed
    "zarr": {"store"},
    "google_crc32c": {"store"},
    "fcntl": {"store"},
    "dask": {"workers"},
    "distributed": {"workers"},
    "dask_cuda": {"workers"},
    "dask_jobqueue": {"workers"},
    "dask_kubernetes": {"workers"},
    "pynvml": {"workers"},
    "multiprocessing": {"workers"},
    "mrcfile": {"files"},
    "starfile": {"files"},
    "plotly": {"report"},
    "matplotlib": {"report"},
    "PIL": {"report"},
    "triton": {"model"},
    "typer": {"cli"},
    "rich": {"cli"},
}
ONLY_FOR_TYPES = {"zarr": {"report", "stages"}, "torch": {"particles"}}
"""Imported below ``if TYPE_CHECKING`` there: opened by the store, or at first use."""
LONGEST, LONGER = 450, {"settings.py": 600, "cli.py": 600}
"""Lines of a module, at most."""
MODULES = sorted(ROOT.rglob("*.py"))
ON_THE_LINE = [path for path in MODULES if path != ROOT / "__init__.py"]
"""All but the package's own ``__init__``, which names what is public."""


def part_of(path: Path) -> str:
    """The part of the line that a file belongs to; empty for the package itself."""
    inside = path.relative_to(ROOT)
    name = inside.parts[0] if len(inside.parts) > 1 else inside.stem
    return "" if name == "__init__" else name


def imports(path: Path) -> list[tuple[str, bool]]:
    """(full name, whether for types alone) of all that a file imports, inside functions too."""
    tree = ast.parse(path.read_text())
    for_types = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING")
        for part in block.body
        for node in ast.walk(part)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node in for_types) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively: the line cannot be read"
            found += [(f"{node.module}.{alias.name}", node in for_types) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            assert not part_of(path), f"{path} imports by name: the line cannot be read"
    return found


def named(path: Path) -> set[str]:
    """The modules of ours that a file names in a text: to import, to send, to preload."""
    texts = [
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return {text for text in texts if re.fullmatch(r"scapedist(\.\w+)+", text)}


def own_parts(path: Path) -> set[str]:
    """The parts of the line that a file imports."""
    every = [name for name, _ in imports(path)] + sorted(named(path))
    names = [name.split(".") for name in every if name.split(".")[0] == "scapedist"]
    parts = {name[1] for name in names if len(name) > 1}
    return {part for part in parts if not part.startswith("__")}  # scapedist.__version__


def test_every_module_is_on_the_line():
    assert {part_of(path) for path in MODULES} - {""} <= set(LINE)


@pytest.mark.parametrize("path", ON_THE_LINE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_come_from_the_left(path):
    part = part_of(path)
    left = LINE[: LINE.index(part)]
    inside = {part} if path.parent != ROOT else set()
    assert own_parts(path) <= {*left, *inside}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_outside_parts_have_one_place(path):
    part = part_of(path)
    for name, for_types in imports(path):
        package = name.split(".")[0]
        allowed = ONLY_IN.get(package, {part})
        if for_types:
            allowed = allowed | ONLY_FOR_TYPES.get(package, set())
        assert part in allowed, f"{name} belongs to {', '.join(sorted(allowed))}"


def test_the_rule_sees_a_step_back(tmp_path, monkeypatch):
    """The test itself: an import inside a function, of a module to the right, is found."""
    (tmp_path / "analysis").mkdir()
    path = tmp_path / "analysis" / "gram.py"
    path.write_text(
        "def f():\n    from scapedist import store\n    import scapedist.cli\n"
        "NAME = 'scapedist.landscape.run'\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert own_parts(path) == {"store", "cli", "landscape"}
    with pytest.raises(AssertionError):
        test_imports_come_from_the_left(path)


def circle_in(needs: dict[str, set[str]]) -> list[str]:
    """Names that need one another in a circle; empty without one."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return trail[trail.index(name) :]
        if name in done:
            return []
        for other in sorted(needs.get(name, ())):
            if found := visit(other, [*trail, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(needs) if (found := visit(name, []))), [])


def needs_inside(package: Path) -> dict[str, set[str]]:
    """Which files of a package each of them imports, inside functions and for types too."""
    files = {path.stem: path for path in package.glob("*.py")}
    prefix = f"scapedist.{package.name}."
    found: dict[str, set[str]] = {}
    for stem, path in files.items():
        every = [name for name, _ in imports(path)] + sorted(named(path))
        own = {name.removeprefix(prefix).split(".")[0] for name in every if name.startswith(prefix)}
        found[stem] = (own & set(files)) - {"__init__"}
    return found


PACKAGES = sorted(path.parent for path in ROOT.glob("*/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_no_circle_inside_a_package(package):
    assert circle_in(needs_inside(package)) == []


def test_the_rule_sees_a_circle(tmp_path):
    package = tmp_path / "landscape"
    package.mkdir()
    (package / "a.py").write_text("def f():\n    from scapedist.landscape.b import g\n")
    (package / "b.py").write_text("from scapedist.landscape import c\n")
    (package / "c.py").write_text("NAME = 'scapedist.landscape.a'\n")
    assert circle_in(needs_inside(package)) == ["a", "b", "c"]


@pytest.mark.parametrize("name", sorted({name for path in MODULES for name in named(path)}))
def test_a_module_named_in_a_text_can_be_imported(name):
    """A forkserver says nothing of a preload that fails, and workers would each import it."""
    import_module(name)


@pytest.mark.parametrize("name", PRELOADED)
def test_what_workers_are_forked_with_can_be_imported(name):
    import_module(name)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_is_short(path):
    most = LONGER.get(path.relative_to(ROOT).as_posix(), LONGEST)
    assert len(path.read_text().splitlines()) <= most


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_executes_from_a_file(path):
    """No loader that runs what a file says (DESIGN, decision 8)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {key.arg: ast.unparse(key.value) for key in node.keywords}
        assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "joblib.load"), name
        assert given.get("allow_pickle", "False") == "False"
        if name == "torch.load":
            assert given.get("weights_only") == "True"


HELP = """
sys.argv = ["scapedist", "--help"]
try:
    scapedist.cli.main()
except SystemExit as end:
    assert end.code == 0
"""


@pytest.mark.parametrize(
    "code", ["import scapedist", "import scapedist.cli", f"import scapedist.cli, sys{HELP}"]
)
def test_help_needs_no_heavy_import(code):
    heavy = "{'torch', 'zarr', 'distributed', 'numpy', 'scipy', 'sklearn'}"
    early = f"import sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{early}"], capture_output=True, text=True, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert ("Usage: scapedist" in done.stdout) == (HELP in code)


def test_public_names():
    for name in scapedist.__all__:
        assert getattr(scapedist, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        scapedist.nonsense  # noqa: B018
