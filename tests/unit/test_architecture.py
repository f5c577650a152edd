"""The line of modules: each imports only from its left, and outside parts have one place each."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import scapedist

ROOT = Path(scapedist.__file__).parent
LINE = [
    "errors",
    "plan",
    "backend",
    "model",
    "analysis",
    "settings",
    "store",
    "workers",
    "output",
    "landscape",
    "cli",
]
ONLY_IN = {
    "cupy": {"backend"},
    "cuml": {"backend"},
    "sklearn": {"backend"},
    "threadpoolctl": {"backend"},
    "cryodrgn": {"model"},
    "torch": {"model", "workers", "landscape"},  # the field; a worker's threads; volumes as tensors
    "zarr": {"store", "landscape"},  # landscape: a worker's chunk, and arrays by type
    "google_crc32c": {"store"},
    "fcntl": {"store"},
    "dask": {"workers"},
    "distributed": {"workers"},
    "dask_cuda": {"workers"},
    "dask_jobqueue": {"workers"},
    "dask_kubernetes": {"workers"},
    "pynvml": {"workers"},
    "multiprocessing": {"workers"},
    "mrcfile": {"output"},
    "plotly": {"output"},
    "matplotlib": {"output"},
    "PIL": {"output"},
    "starfile": {"output"},
    "umap": {"backend"},
    "typer": {"cli"},
    "rich": {"cli"},
}
ONLY_FOR_TYPES = {"zarr": {"output"}}
"""Imported below ``if TYPE_CHECKING`` there: read through an open group, never opened."""
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


def own_parts(path: Path) -> set[str]:
    """The parts of the line that a file imports."""
    names = [name.split(".") for name, _ in imports(path) if name.split(".")[0] == "scapedist"]
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
    path.write_text("def f():\n    from scapedist import store\n    import scapedist.cli\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert own_parts(path) == {"store", "cli"}
    with pytest.raises(AssertionError):
        test_imports_come_from_the_left(path)


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
