"""Our calls of cuML, CuPy, RMM, dask-cuda and NVML are as those packages want to be called.

The calls are read from our sources; how the packages want them, from ``signatures.json``. Where the
packages are installed the record is made again and compared. No GPU is needed.
"""

import inspect
import json
import tomllib
from importlib import metadata

import pytest
import record_signatures
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from record_signatures import DISTRIBUTIONS, PACKAGES, RECORD, ROOT, Use, our_uses, uses

RECORDED = json.loads(RECORD.read_text())
SIGNATURES, BOUNDS = RECORDED["signatures"], RECORDED["bounds"]


def wrong(use: Use) -> str:
    """What is wrong with a use; nothing where it is as the package wants it."""
    there = [name for name in use.names if name in SIGNATURES]
    if not there:
        names = " or ".join(use.names)
        return f"{use.place}: {names} is not recorded; if it exists run record_signatures.py"
    signature = SIGNATURES[there[0]]
    if use.arguments is None or not isinstance(signature, str):
        return ""
    n_positional, keywords, more = use.arguments
    taken = inspect.signature(eval(f"lambda {signature[1:-1]}: None"))
    try:
        (taken.bind_partial if more else taken.bind)(*[0] * n_positional, **dict.fromkeys(keywords))
    except TypeError as error:
        return f"{use.place}: {there[0]}{signature}: {error}"
    for keyword, allowed in BOUNDS.get(there[0], {}).items():
        value = use.constants.get(keyword)
        inside = (
            value in allowed
            if isinstance(value, str)
            else not isinstance(value, int) or allowed[0] <= value <= allowed[1]
        )
        if not inside:
            return f"{use.place}: {there[0]}: {keyword}={value!r} is none of {allowed}"
    return ""


def test_our_calls_are_as_the_packages_want_them():
    assert [error for error in map(wrong, our_uses()) if error] == []


def test_the_calls_are_found():
    found = our_uses()
    names = {name for use in found for name in use.names}
    assert {name.split(".")[0] for name in names} == PACKAGES
    called = {use.names[0] for use in found if use.arguments is not None}
    assert {
        "cuml.cluster.HDBSCAN.fit_predict",
        "cuml.cluster.KMeans",
        "cuml.manifold.UMAP",
        "cupy.cuda.Stream.wait_event",
        "cupy.linalg.eigh",
        "cupyx.empty_pinned",
        "dask_cuda.LocalCUDACluster",
        "pynvml.nvmlDeviceGetMigDeviceHandleByIndex",
        "rmm.mr.get_current_device_resource",
    } <= called


@pytest.mark.parametrize(
    ("text", "told"),
    [
        # cuML's classes take keywords only
        ("from cuml.cluster import KMeans as K\nK(3, init=s)", "too many positional arguments"),
        ("import cuml\ncuml.cluster.KMeans(clusters=3)", "unexpected keyword argument 'clusters'"),
        ("from cuml.cluster import KMeans\nKMeans(init='greedy')", "init='greedy' is none of"),
        ("from cuml.cluster import HDBSCAN\nHDBSCAN(min_samples=2000)", "min_samples=2000 is none"),
        ("from cuml.cluster import KMeans\nm = KMeans()\nm.fit()", "missing a required argument"),
        (
            "from cuml.cluster import KMeans\nx = KMeans().inertia",
            "cuml.cluster.KMeans.inertia is not",
        ),
        ("from cuml.manifold import UMAP\no = {'seed': 1}\nUMAP(**o)", "keyword argument 'seed'"),
        ("def f():\n    import cupy as c\n    return c.aranje(3)", "cupy.aranje is not recorded"),
        ("import cupy\ncupy.cuda.Stream().record(1, 2)", "too many positional arguments"),
        ("xp = array_module(a)\nxp.zeros()", "missing a required argument: 'shape'"),
        (
            "def f(self):\n import cupy\n self.s = cupy.cuda.Stream()\ndef g(self):\n self.s.go()",
            "cupy.cuda.Stream.go is not recorded",
        ),
        (
            "import rmm\nr = rmm.mr.get_current_device_resource()\nhasattr(r, 'size')",
            "Adaptor.size or",
        ),
        (
            "from dask_cuda import LocalCUDACluster as L\nL(rmm_pool=1)",
            "keyword argument 'rmm_pool'",
        ),
        (
            "import pynvml\npynvml.nvmlDeviceGetMigDeviceHandle(1)",
            "nvmlDeviceGetMigDeviceHandle is not",
        ),
        ("import pynvml\npynvml.nvmlDeviceGetName()", "missing a required argument: 'handle'"),
    ],
)
def test_a_wrong_call_is_told(text, told):
    errors = [error for error in map(wrong, uses(text, "text")) if error]
    assert errors
    assert told in errors[0]


@pytest.mark.parametrize(
    "text",
    [
        "from cuml.cluster import KMeans\nm = KMeans(n_clusters=3)\nm.fit(x).labels_",
        "from cuml.manifold import UMAP\nUMAP(**options).fit_transform(x)",
        "import cupy\ncupy.zeros(*shape)",
        "import cupy as np\ndef f(np):\n    np.anything()",
        "def f():\n    import cupy as c\ndef g():\n    c.anything()",
        "from sklearn.cluster import KMeans\nKMeans(3, anything=1)",
    ],
)
def test_a_right_call_is_not_told(text):
    assert [error for error in map(wrong, uses(text)) if error] == []


def test_the_record_is_of_versions_that_the_extra_takes():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = {canonicalize_name(r.name): r for r in map(Requirement, extra["cuda13"])}
    lock = dict(
        line.split(" ")[0].split("==")
        for line in (ROOT / "constraints-cuda13.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    for name, version in RECORDED["versions"].items():
        assert name not in asked or asked[name].specifier.contains(version)
        assert lock[name] == version


def test_the_record_is_what_the_installed_packages_have():
    for name in DISTRIBUTIONS:
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
        if installed != RECORDED["versions"][name]:
            pytest.skip(f"{name} is {installed}; recorded is {RECORDED['versions'][name]}")
    assert record_signatures.recorded() == RECORDED
