"""A strict stand-in for CuPy, cuML and a GPU under torch: numpy inside, CuPy's rules outside.

CuPy refuses numpy's arrays where the stand-in does: in an operation with its own, in an assignment,
in an implicit conversion. Names and keywords that CuPy has not are refused too
(``signatures.json``). An array cannot be made or touched outside :func:`on_device`, which is how
tests see that the process that sends work never uses a device, and cannot be pickled, which is how
they see what is sent. It counts where the host would wait for the device.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from scapedist import backend
from scapedist.workers import Serial

RECORD = json.loads(Path(__file__).with_name("signatures.json").read_text())["signatures"]
MEMBERS = {"dtype", "flags", "nbytes", "ndim", "shape", "size"}
"""Names of an array's members that are no methods, all of which CuPy has."""
SCALARS = (int, float, bool, complex, np.generic)
SYNCHRONISE = {"nonzero", "flatnonzero", "argwhere", "unique", "bincount", "repeat", "histogram"}
"""Functions whose result has a size that only the device knows."""
FREE_BYTES = 64 * 2**30
state = SimpleNamespace(depth=0, waits=0)


@contextmanager
def on_device() -> Iterator[None]:
    """Context of a worker's process, which has a device."""
    state.depth += 1
    try:
        with _TorchOnCpu():
            yield
    finally:
        state.depth -= 1


@contextmanager
def waits() -> Iterator[SimpleNamespace]:
    """Context that counts (``.n``) how often the host waits for the device within it."""
    found, before = SimpleNamespace(n=0), state.waits
    yield found
    found.n = state.waits - before


def wait() -> None:
    """Count a wait of the host for the device."""
    state.waits += 1


# -- arrays


def _strict(value: Any, where: str) -> Any:
    """What numpy takes for an operand; a numpy array is refused as CuPy refuses it."""
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type <class 'numpy.ndarray'> in {where}")
    if isinstance(value, list | tuple):
        return type(value)(_strict(part, where) for part in value)
    return value._held if isinstance(value, ndarray) else value


def _call(function: Callable[..., Any], *given: Any, **options: Any) -> Any:
    name = getattr(function, "__name__", str(function))
    if name in SYNCHRONISE or (name == "where" and len(given) == 1):
        wait()
    out = options.get("out")
    found = function(
        *(_strict(value, name) for value in given),
        **{key: _strict(value, name) for key, value in options.items()},
    )
    return found if out is None else out


def device_array(held: Any) -> Any:
    """An array, or a tuple of some, as one of the device; scalars are arrays of no dimension."""
    if isinstance(held, tuple):
        return tuple(map(device_array, held))
    if isinstance(held, np.generic):
        held = np.asarray(held)
    return ndarray(held) if isinstance(held, np.ndarray) else held


def _index(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(map(_index, key))
    if isinstance(key, ndarray):
        if key.dtype == bool:  # how many there are decides the result's size
            wait()
        return key._held
    return key


class ndarray:  # noqa: N801, D101
    __slots__ = ("__weakref__", "_array")
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, held: np.ndarray) -> None:
        self._array = held
        self._held  # noqa: B018

    @property
    def _held(self) -> np.ndarray:
        if not state.depth:
            raise RuntimeError("This process has no device, and an array of one was touched.")
        return self._array

    def __reduce__(self) -> Any:
        raise TypeError("An array of a device was to be sent to another process.")

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __getattr__(self, name: str) -> Any:
        if name not in MEMBERS and f"cupy.ndarray.{name}" not in RECORD:
            raise AttributeError(f"cupy.ndarray has no attribute {name!r}")
        found = getattr(self._held, name)
        if not callable(found):
            return device_array(found) if isinstance(found, np.ndarray) else found
        method = getattr(np.ndarray, name)
        return lambda *given, **options: device_array(_call(method, self, *given, **options))

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        return device_array(self._held[_index(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(value, ndarray | int | float | bool | complex | np.generic):
            raise TypeError(f"cupy refuses assignment from {type(value)}")
        self._held[_index(key)] = value._held if isinstance(value, ndarray) else value

    def get(
        self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True
    ) -> np.ndarray:
        if blocking:
            wait()
        if out is None:
            return np.array(self._held, order=order)  # type: ignore[call-overload]
        assert isinstance(out, np.ndarray)
        assert (out.dtype, out.shape) == (self.dtype, self.shape)
        assert self._held.flags.c_contiguous
        out[...] = self._held
        return out

    def item(self) -> Any:
        wait()
        return self._held.item()

    def __array_ufunc__(self, ufunc: Any, method: str, *given: Any, **options: Any) -> Any:
        if f"cupy.{ufunc.__name__}" not in RECORD or "where" in options:
            return NotImplemented
        if isinstance(options.get("out"), tuple):
            (options["out"],) = options["out"]
        function = ufunc if method == "__call__" else getattr(ufunc, method)
        return device_array(_call(function, *given, **options))

    def __array_function__(self, function: Any, types: Any, given: Any, options: Any) -> Any:
        place = "cupy" + function.__module__.removeprefix("numpy")
        found = getattr(sys.modules.get(place), function.__name__, None)
        return NotImplemented if found is None else found(*given, **options)


def _operators() -> None:
    """Give the array its operators, each with the same rules."""

    def unary(function: Callable[..., Any]) -> Any:
        return lambda self: device_array(function(self._held))

    def scalar(kind: Callable[..., Any]) -> Any:
        def convert(self: Any) -> Any:
            wait()
            return kind(self._held)

        return convert

    def binary(function: Any, swapped: bool = False, in_place: bool = False) -> Any:
        def operate(self: Any, other: Any) -> Any:
            pair = (other, self) if swapped else (self, other)
            if not isinstance(other, (ndarray, np.ndarray, *SCALARS)):
                return NotImplemented
            return device_array(_call(function, *pair, **({"out": self} if in_place else {})))

        return operate

    arithmetic = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide,
        "matmul": np.matmul, "pow": np.power, "floordiv": np.floor_divide, "mod": np.remainder,
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    }  # fmt: skip
    for name, function in arithmetic.items():
        setattr(ndarray, f"__{name}__", binary(function))
        setattr(ndarray, f"__r{name}__", binary(function, swapped=True))
        setattr(ndarray, f"__i{name}__", binary(function, in_place=True))
    comparisons = {
        "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
        "eq": np.equal, "ne": np.not_equal,
    }  # fmt: skip
    for name, function in comparisons.items():
        setattr(ndarray, f"__{name}__", binary(function))
    for name, function in {"neg": np.negative, "abs": np.abs, "invert": np.invert}.items():
        setattr(ndarray, f"__{name}__", unary(function))
    for name, kind in {"float": float, "int": int, "bool": bool}.items():
        setattr(ndarray, f"__{name}__", scalar(kind))


_operators()


# -- modules


class _Event:
    def synchronize(self) -> None:
        """Nothing to wait for."""


class _Stream:
    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        pass

    def wait_event(self, event: _Event) -> None:
        assert isinstance(event, _Event)

    def record(self) -> _Event:
        return _Event()

    def synchronize(self) -> None:
        wait()


def _functions(module: Any, place: str) -> dict[str, Any]:
    """Numpy's functions under the names that CuPy has, with the keywords that CuPy takes."""
    names = {
        name: None if signature is None else re.findall(r"(\w+)(?:=\.\.\.)?", signature)
        for (parent, _, name), signature in ((key.rpartition("."), RECORD[key]) for key in RECORD)
        if parent == place and callable(found := getattr(module, name, None))
        and not inspect.isclass(found)
    }  # fmt: skip

    def strict(name: str, parameters: list[str] | None) -> Any:
        function = getattr(module, name)

        def call(*given: Any, **options: Any) -> Any:
            unknown = (
                [] if parameters is None else [key for key in options if key not in parameters]
            )
            if unknown or (parameters is None and "where" in options):
                raise TypeError(f"cupy.{name}() got an unexpected keyword {unknown or 'where'}")
            return device_array(_call(function, *given, **options))

        call.__name__ = name
        return call

    return {name: strict(name, parameters) for name, parameters in names.items()}


def _modules() -> dict[str, ModuleType]:
    cupy, cupyx = ModuleType("cupy"), ModuleType("cupyx")
    linalg, cuda = ModuleType("cupy.linalg"), ModuleType("cupy.cuda")
    vars(cupy).update(_functions(np, "cupy"))
    vars(linalg).update(_functions(np.linalg, "cupy.linalg"))

    def asarray(a: Any, dtype: Any = None, order: Any = None) -> Any:
        """A copy on the device of what is not there yet."""
        if isinstance(a, ndarray):
            return device_array(np.asarray(a._held, dtype))
        return device_array(np.array(a, dtype))

    def percentile(a: Any, q: Any, axis: Any = None) -> Any:
        if isinstance(q, ndarray):
            wait()
        return device_array(np.percentile(a._held, _strict(q, "percentile"), axis))

    here = {
        "ndarray": ndarray,
        "asarray": asarray,
        "array": asarray,
        "percentile": percentile,
        "get_array_module": lambda *a: cupy if any(isinstance(x, ndarray) for x in a) else np,
        "from_dlpack": lambda tensor: device_array(tensor.numpy()),
        "get_default_memory_pool": lambda: SimpleNamespace(free_all_blocks=lambda: None),
        "linalg": linalg,
        "cuda": cuda,
    }
    here |= {name: getattr(np, name) for name in ("float32", "float64", "int64", "int32", "inf")}
    vars(cupy).update(here)
    cuda.Stream, cuda.get_current_stream = _Stream, _Stream
    cupyx.empty_pinned = np.empty
    return {"cupy": cupy, "cupy.linalg": linalg, "cupy.cuda": cuda, "cupyx": cupyx} | _cuml()


def _cuml() -> dict[str, ModuleType]:
    """cuML's estimators by scikit-learn's, with cuML's rules."""
    from sklearn import cluster as theirs
    from sklearn import decomposition as components

    class KMeans:
        def __init__(
            self, *, n_clusters: int = 8, max_iter: int = 300, tol: float = 1e-4, init: Any,
            n_init: int = 1,
        ) -> None:  # fmt: skip
            self._of = theirs.KMeans(
                n_clusters, init=init, n_init=n_init, max_iter=max_iter, tol=tol
            )

        def fit(self, X: ndarray) -> KMeans:  # noqa: N803
            self._of.fit(X._held.copy())
            self.inertia_ = self._of.inertia_
            self.cluster_centers_ = device_array(self._of.cluster_centers_)
            self.labels_ = device_array(self._of.labels_)
            return self

    class HDBSCAN:
        def __init__(self, *, min_cluster_size: int = 5, min_samples: int | None = None) -> None:
            if not 1 <= (min_samples or min_cluster_size) <= 1023:
                raise ValueError("min_samples must be at most 1023")
            # scikit-learn counts the point itself, too
            neighbours = min_cluster_size if min_samples is None else min_samples
            self._of = theirs.HDBSCAN(min_cluster_size, min_samples=neighbours + 1, copy=True)

        def fit_predict(self, X: ndarray) -> Any:  # noqa: N803
            return device_array(self._of.fit_predict(X._held))

    class UMAP:
        def __init__(
            self, *, n_components: int = 2, n_neighbors: int = 15, random_state: Any = None
        ) -> None:
            self._n = n_components

        def fit_transform(self, X: ndarray) -> Any:  # noqa: N803
            return device_array(X._held[:, : self._n].astype(np.float32))

    class PCA:
        def __init__(self, *, n_components: int | None = None, svd_solver: str = "auto") -> None:
            self._of = components.PCA(n_components, svd_solver=svd_solver)

        def fit(self, X: ndarray) -> PCA:  # noqa: N803
            self._of.fit(X._held)
            self.explained_variance_ = device_array(self._of.explained_variance_)
            self.components_ = device_array(self._of.components_)
            return self

    class AgglomerativeClustering:
        def __init__(self, *, n_clusters: int = 2, linkage: str = "single") -> None:
            assert linkage == "single"
            self._of = theirs.AgglomerativeClustering(n_clusters, linkage=linkage)

        def fit(self, X: ndarray) -> AgglomerativeClustering:  # noqa: N803
            self.labels_ = device_array(self._of.fit_predict(X._held))
            return self

    parts = {
        "cluster": (KMeans, HDBSCAN, AgglomerativeClustering),
        "manifold": (UMAP,),
        "decomposition": (PCA,),
    }
    cuml = ModuleType("cuml")
    cuml.__version__ = "a stand-in"
    found = {"cuml": cuml}
    for name, kinds in parts.items():
        found[f"cuml.{name}"] = part = ModuleType(f"cuml.{name}")
        vars(part).update({kind.__name__: kind for kind in kinds})
        vars(cuml)[name] = part
    return found


# -- torch


class _TorchOnCpu(TorchFunctionMode):
    """torch's functions with the device cuda, computed by the CPU."""

    def __torch_function__(
        self, function: Any, types: Any, given: Any = (), options: Any = None
    ) -> Any:
        options = dict(options or {})
        name = getattr(function, "__name__", "")
        if name in ("to", "empty", "zeros", "ones", "tensor", "full", "randn", "arange", "eye"):
            given = tuple("cpu" if value == "cuda" else value for value in map(_plain, given))
            if options.get("device") in ("cuda", torch.device("cuda")):
                options["device"] = "cpu"
        out_type = options.pop("out_dtype", None) if name == "mm" else None
        if out_type is not None:  # a product of 16-bit factors that is added up in more
            return torch.mm(given[0].to(out_type), given[1].to(out_type), **options)
        return function(*given, **options)


def _plain(value: Any) -> Any:
    return "cuda" if isinstance(value, torch.device) and value.type == "cuda" else value


def install(monkeypatch: Any) -> ModuleType:
    """Put the stand-ins in the place of CuPy, cuML and a GPU, until the test ends."""
    modules = _modules()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    as_array = backend.as_array
    monkeypatch.setattr(
        backend,
        "as_array",
        lambda tensor: device_array(as_array(tensor)) if state.depth else as_array(tensor),
    )
    # Triton would launch its kernels on a GPU; the interpreter's are held to float64 elsewhere
    monkeypatch.setattr("scapedist.model.layers.kernels_of", lambda device: None)
    memory = SimpleNamespace(get_allocator_backend=lambda: "native")
    for name, value in {
        "mem_get_info": lambda device=None: (FREE_BYTES, FREE_BYTES),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: wait(),
        "memory": memory,
        "get_device_properties": lambda device=None: SimpleNamespace(
            L2_cache_size=50 * 2**20, major=9, minor=0, name="a stand-in"
        ),
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "a stand-in",
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return modules["cupy"]


# -- workers


class StandInGpu(Serial):
    """A worker with a GPU, in this process: what is sent to it and back is pickled on the way."""

    local = False

    def __init__(self, n_workers: int = 2, memory_limit: int | None = None) -> None:
        super().__init__("cuda", memory_limit)
        self.n_workers = n_workers

    def connected(self) -> StandInGpu:
        """Itself: there is nothing to connect to."""
        return self

    def run(self, work: Any, shared: Any, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield (task's number, result), each task in the worker's context."""
        work, shared = _sent((work, shared))
        for number, task in enumerate(tasks):
            with on_device():
                ((_, found),) = super().run(work, shared, [_sent(task)])
                found = _sent(found)
            yield number, found

    def call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """One call in the worker's context."""
        work, arguments = _sent((work, arguments))
        with on_device():
            return _sent(super().call(work, *arguments))

    def everywhere(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """One call on each worker."""
        return [self.call(work, *arguments)] * self.n_workers


def _sent(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def public(module: str) -> set[str]:
    """Names of the public functions and classes that a module defines."""
    found = vars(importlib.import_module(module)).items()
    return {
        name
        for name, value in found
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module
    }
