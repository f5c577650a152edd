"""Record how the packages of the extra cuda13 want to be called: names and parameters, no code.

    python tests/device/record_signatures.py

writes ``signatures.json`` beside this file. It needs the packages, not a GPU: cuML, which cannot be
imported without one, is read as text. What is recorded is what our sources use (``our_uses``, by
which the tests hold our calls against the record), what they may use next (``WHOLE``, ``ALSO``) and
what the tests' stand-ins imitate.
"""

import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_name("signatures.json")
DISTRIBUTIONS = ("cuml-cu13", "cupy-cuda13x", "dask-cuda", "nvidia-ml-py", "rmm-cu13")
PACKAGES = {"cuml", "cupy", "cupyx", "dask_cuda", "pynvml", "rmm"}
WHOLE = ("cupy", "cupy.cuda.Event", "cupy.cuda.Stream", "cupy.linalg", "cupy.ndarray")
"""Modules and classes of which each public function is recorded."""
ALSO = (
    *(f"cuml.cluster.HDBSCAN.{name}" for name in ("fit", "labels_", "probabilities_")),
    *(f"cuml.cluster.KMeans.{name}" for name in ("fit_predict", "n_iter_", "predict", "transform")),
    *(f"cuml.manifold.UMAP.{name}" for name in ("embedding_", "fit", "transform")),
    # called by dask-cuda and distributed when they start workers
    "pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
    "pynvml.nvmlDeviceGetHandleByUUID",
    "pynvml.nvmlDeviceGetUtilizationRates",
    "pynvml.nvmlDeviceIsMigDeviceHandle",
    *(
        f"pynvml.NVMLError_{name}"
        for name in (
            "DriverNotLoaded",
            "GpuIsLost",
            "InvalidArgument",
            "LibraryNotFound",
            "NoPermission",
            "NotSupported",
            "Unknown",
        )
    ),
)
BOUNDS = {  # read in the classes' code
    "cuml.cluster.HDBSCAN": {"min_samples": [1, 1023]},
    "cuml.cluster.KMeans": {"init": ["scalable-k-means++", "k-means||", "k-means++", "random"]},
}
RETURNS = {
    "cupy.asarray": ("cupy.ndarray",),
    "cupy.ascontiguousarray": ("cupy.ndarray",),
    "cupy.cuda.Stream.record": ("cupy.cuda.Event",),
    "cupy.cuda.get_current_stream": ("cupy.cuda.Stream",),
    "cupy.get_default_memory_pool": ("cupy.cuda.MemoryPool",),
    "rmm.mr.get_current_device_resource": (
        "rmm.mr.TrackingResourceAdaptor",
        "rmm.mr.PoolMemoryResource",
    ),
    "rmm.mr.PoolMemoryResource.get_upstream": ("rmm.mr.PoolMemoryResource",),
}
"""Classes, one of which a call returns; what begins with a capital returns itself."""


# -- what our sources use


@dataclass(frozen=True)
class Use:
    """A name that a source uses, and how it calls it.

    Attributes
    ----------
    place
        File and line.
    names
        Full names, one of which must be there.
    arguments
        Number of arguments by position, keywords, whether there may be more of them; None where
        it is not called.
    constants
        Keywords whose values are written out.
    """

    place: str
    names: tuple[str, ...]
    arguments: tuple[int, tuple[str, ...], bool] | None = None
    constants: dict[str, Any] = field(default_factory=dict)


class Reader(ast.NodeVisitor):
    """Reads a source from its beginning and notes what it uses of the packages."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[Use] = []
        self.known: dict[str, tuple[str, tuple[str, ...]]] = {}
        self.options: dict[str, dict[str, ast.expr]] = {}

    def note(self, node: Any, names: tuple[str, ...], **how: Any) -> None:
        """Note that a node uses one of some names."""
        if names[0].split(".")[0] in PACKAGES and names[0] not in PACKAGES:
            self.found.append(Use(f"{self.file}:{node.lineno}", names, **how))

    def meaning(self, node: ast.expr) -> tuple[str, tuple[str, ...]] | None:
        """Whether an expression is a thing of that name or an instance of it, and the names."""
        match node:
            case ast.Name():
                return self.known.get(node.id)
            case ast.Attribute():
                base = self.meaning(node.value)
                if base is not None:
                    return "name", tuple(f"{name}.{node.attr}" for name in base[1])
                return self.known.get(ast.unparse(node))
            case ast.Call(func=function):
                if ast.unparse(function).endswith("array_module"):
                    return "name", ("cupy",)
                called = self.meaning(function)
                for name in called[1] if called else ():
                    if name in RETURNS:
                        return "instance", RETURNS[name]
                    if name.split(".")[-1][0].isupper():
                        return "instance", (name,)
            case ast.IfExp():
                return self.meaning(node.body) or self.meaning(node.orelse)
        return None

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Forget, after a function, the names that it bound."""
        before, options = dict(self.known), dict(self.options)
        for argument in [*node.args.args, *node.args.kwonlyargs]:
            self.known.pop(argument.arg, None)
        self.generic_visit(node)
        kept = {name: what for name, what in self.known.items() if name.startswith("self.")}
        self.known, self.options = before | kept, options

    def visit_Import(self, node: ast.Import) -> None:
        """Learn what a name means."""
        for alias in node.names:
            name = alias.name if alias.asname else alias.name.split(".")[0]
            self.known[alias.asname or name] = "name", (name,)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Learn what a name means."""
        for alias in node.names:
            names = (f"{node.module}.{alias.name}",)
            self.known[alias.asname or alias.name] = "name", names
            self.note(node, names)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Learn what a variable holds."""
        self.generic_visit(node)
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            for place, value in pairs:
                name = ast.unparse(place)
                if isinstance(value, ast.Dict) and all(
                    isinstance(k, ast.Constant) for k in value.keys
                ):
                    keys = [k.value for k in value.keys if isinstance(k, ast.Constant)]
                    self.options[name] = dict(zip(map(str, keys), value.values, strict=True))
                if (meaning := self.meaning(value)) is not None:
                    self.known[name] = meaning
                elif not (isinstance(value, ast.Constant) and value.value is None):
                    self.known.pop(name, None)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Note a name."""
        if (meaning := self.meaning(node)) and meaning[0] == "name":
            self.note(node, meaning[1])
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Note a call, and what ``hasattr`` asks for."""
        if ast.unparse(node.func) == "hasattr" and isinstance(node.args[1], ast.Constant):
            meaning = self.meaning(node.args[0])
            if meaning:
                self.note(node, tuple(f"{name}.{node.args[1].value}" for name in meaning[1]))
        meaning = self.meaning(node.func)
        if meaning and meaning[0] == "name":
            given = {k.arg: k.value for k in node.keywords if k.arg}
            more = any(isinstance(argument, ast.Starred) for argument in node.args)
            for keyword in node.keywords:
                if keyword.arg is None:
                    options = self.options.get(ast.unparse(keyword.value))
                    given, more = given | (options or {}), more or options is None
            n = sum(not isinstance(argument, ast.Starred) for argument in node.args)
            constants = {k: v.value for k, v in given.items() if isinstance(v, ast.Constant)}
            self.note(node, meaning[1], arguments=(n, tuple(given), more), constants=constants)
        self.generic_visit(node)


def uses(text: str, file: str = "") -> list[Use]:
    """What a source uses of the packages."""
    reader = Reader(file)
    reader.visit(ast.parse(text))
    return reader.found


def our_uses() -> list[Use]:
    """What all our sources use of the packages."""
    checks = [ROOT / "benchmarks" / f"gpu_{name}.py" for name in ("check", "whole")]
    sources = [*sorted((ROOT / "scapedist").rglob("*.py")), *checks]
    return [use for path in sources for use in uses(path.read_text(), str(path.relative_to(ROOT)))]


# -- what the packages have


def written(signature: inspect.Signature, skip_first: bool = False) -> str:
    """A signature without types, with ``...`` for each default."""
    parameters = [
        p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else ...)
        for p in signature.parameters.values()
    ][skip_first:]
    text = str(inspect.Signature(parameters))
    return text.replace("Ellipsis", "...")


def imported(name: str) -> str | int | None:
    """Signature of a name, by import; its value where it is a number; None where it has none.

    Raises
    ------
    LookupError
        Where there is no such name.
    """
    parts = name.split(".")
    thing = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 2):
        if not hasattr(thing, part):
            try:
                importlib.import_module(".".join(parts[:i]))
            except ImportError:
                raise LookupError(name) from None
        thing, owner = getattr(thing, part), thing
    if isinstance(thing, int):
        return thing
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return "(value)" if thing.__name__ == "NVMLError" else "()"
    method = inspect.isclass(owner) and not inspect.isclass(thing)
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):  # Cython writes it at the head of the text
        return headed(parts[-1], inspect.getdoc(thing) or "", method)
    kinds = {p.kind for p in signature.parameters.values()}
    if inspect.isclass(thing) and inspect.Parameter.VAR_KEYWORD in kinds:
        signature = with_those_of_its_base(thing, signature)
    names = list(signature.parameters)
    return written(signature, skip_first=method and names[:1] == ["self"])


def headed(name: str, text: str, method: bool) -> str | None:
    """Signature in the first line of a text, as Cython writes it there."""
    match = re.match(rf"(?:\w+\.)?{name}\((.*?)\)(?: ->.*)?$", text.split("\n")[0])
    if match is None:
        return None
    arguments = re.sub(r"^(?:\w+ )?self(?:, )?", "", match[1]) if method else match[1]
    plain = re.sub(r"\b(?:int|size_t|bool|object|str|float) (\w)", r"\1", arguments)
    try:
        return parsed(f"def f({plain}): ...")
    except SyntaxError:
        return None


def with_those_of_its_base(thing: type, signature: inspect.Signature) -> inspect.Signature:
    """A class's signature with its base's parameters in the place of ``**kwargs``."""
    own = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
    base = inspect.signature(thing.__mro__[1]).parameters.values()
    more = [
        p.replace(kind=p.KEYWORD_ONLY, default=None)
        for p in base
        if p.kind == p.POSITIONAL_OR_KEYWORD and p.name not in signature.parameters
    ]
    return inspect.Signature([*own, *more])


def parsed(definition: str) -> str:
    """Signature of a function's first line."""
    (node,) = ast.parse(definition).body
    assert isinstance(node, ast.FunctionDef)
    for each in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
        each.annotation = None
    node.args.defaults = [ast.Constant(...) for _ in node.args.defaults]
    node.args.kw_defaults = [d and ast.Constant(...) for d in node.args.kw_defaults]
    arguments = ast.unparse(node.args)
    return f"({re.sub(r'^self(, |$)', '', arguments)})"


def read(name: str) -> str | None:
    """Signature of a class of cuML or of something in it, from its text; None for an attribute.

    Raises
    ------
    LookupError
        Where there is no such name.
    """
    spec = find_spec("cuml")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    parts = name.split(".")
    if parts[1].startswith("__"):
        return None
    place = next(i for i, part in enumerate(parts) if part[0].isupper())
    file = module_file(package, parts[1:place])
    for text in texts_of_class(package, file, parts[place]):
        if len(parts) == place + 1:
            found = definition(text, "__init__")
        else:
            found = definition(text, parts[-1])
            if found is None and re.search(rf"\b{parts[-1]}\b(?: =|: )", text):
                return None
        if found is not None:
            return parsed(found)
    raise LookupError(name)


def module_file(package: Path, parts: list[str]) -> Path:
    """File of a module of a package."""
    here = package.joinpath(*parts)
    tries = [here / "__init__.py", here.with_suffix(".py"), here.with_suffix(".pyx")]
    return next(path for path in tries if path.is_file())


def texts_of_class(package: Path, file: Path, name: str) -> Iterator[str]:
    """Texts of a class and, after it, of its bases."""
    text = file.read_text()
    match = re.search(rf"^class {name}\b(?:\((.*?)\))?:\n((?:[ \t].*\n|\n)*)", text, re.M | re.S)
    if match is None:
        origin = re.search(
            rf"^from cuml\.([\w.]+) import (?:\([^)]*?|[^(\n]*?)\b{name}\b", text, re.M
        )
        if origin is not None:
            yield from texts_of_class(package, module_file(package, origin[1].split(".")), name)
        return
    yield match[2]
    for base in (match[1] or "").split(","):
        if re.fullmatch(r"\w+", base.strip()):
            yield from texts_of_class(package, file, base.strip())


def definition(text: str, name: str) -> str | None:
    """First lines of a method in a class's text, as of a function."""
    match = re.search(rf"^    def {name}\((.*?)\)(?: ->[^:]*)?:$", text, re.M | re.S)
    return match and f"def {name}({match[1]}): ..."


def public(name: str) -> list[str]:
    """Names of the public functions of a module or class."""
    thing = importlib.import_module(name.split(".")[0])
    for part in name.split(".")[1:]:
        thing = getattr(thing, part)
    return [
        f"{name}.{own}"
        for own, value in inspect.getmembers(thing, callable)
        if not own.startswith("_") and not inspect.isclass(value)
    ]


def recorded() -> dict[str, Any]:
    """The record of the installed packages; what no package has is left out."""
    names = {name for use in our_uses() for name in use.names} | set(ALSO)
    found: dict[str, Any] = {}
    for name in sorted(names.union(*map(public, WHOLE))):
        try:
            found[name] = (read if name.startswith("cuml.") else imported)(name)
        except LookupError:
            print(f"there is no {name}")
    return {
        "versions": {name: metadata.version(name) for name in DISTRIBUTIONS},
        "bounds": BOUNDS,
        "signatures": found,
    }


if __name__ == "__main__":
    RECORD.write_text(json.dumps(recorded(), indent=0) + "\n")
