"""Starting workers on GPUs, held against a stand-in of the driver: no GPU is needed.

The stand-in has the names, parameters and errors of nvidia-ml-py that ``signatures.json`` records.
What it answers is how NVML answers: UUIDs, MIG instances, free memory, errors by their classes.
"""

import inspect
import json
import math
import os
import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder
from types import ModuleType, SimpleNamespace

import pytest
from record_signatures import RECORD, written

from scapedist.errors import InputError, ResourceError
from scapedist.workers import gpus
from scapedist.workers.start import LocalGpus

RECORDED = json.loads(RECORD.read_text())["signatures"]
GIB = 2**30


@dataclass
class Part:
    """A MIG instance of a card."""

    uuid: str
    free: int
    group: int
    card: "Card | None" = None

    @property
    def name(self) -> str:
        """Name as NVML gives it."""
        return f"{self.card.name} MIG {self.group}g"


@dataclass
class Card:
    """A card: its ``parts`` are MIG instances, None where MIG is off."""

    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    free: int = 79 * GIB
    capability: tuple[int, int] = (9, 0)
    parts: list[Part] | None = None
    knows_mig: bool = True
    knows_cores: bool = True


def stand_in(cards, driver="580.95.05", cuda=13000, failing=None):
    """A module that answers for some cards as nvidia-ml-py does."""
    nvml = ModuleType("pynvml")
    nvml.NVMLError = type("NVMLError", (Exception,), {})
    for full in RECORDED:
        name = full.removeprefix("pynvml.")
        if name.startswith("NVMLError_"):
            setattr(nvml, name, type(name, (nvml.NVMLError,), {}))
    nvml.NVML_DEVICE_MIG_ENABLE = RECORDED["pynvml.NVML_DEVICE_MIG_ENABLE"]
    nvml.open = 0
    for card in cards:
        for part in card.parts or []:
            part.card = card

    def answers(function):
        assert written(inspect.signature(function)) == RECORDED[f"pynvml.{function.__name__}"]

        def answer(*given, **named):
            if function.__name__ in (failing or {}):
                name = failing[function.__name__]
                raise getattr(nvml, f"NVMLError_{name}")(name)
            assert nvml.open or function.__name__ == "nvmlInit"
            return function(*given, **named)

        setattr(nvml, function.__name__, answer)

    def by_uuid(uuid):
        units = [unit for card in cards for unit in [card, *(card.parts or [])]]
        found = [unit for unit in units if unit.uuid.encode() == uuid]
        if not found:
            raise nvml.NVMLError_NotFound("Not Found")
        return found[0]

    @answers
    def nvmlInit():
        nvml.open += 1

    @answers
    def nvmlShutdown():
        nvml.open -= 1

    @answers
    def nvmlSystemGetDriverVersion():
        return driver

    @answers
    def nvmlSystemGetCudaDriverVersion_v2():
        return cuda

    @answers
    def nvmlDeviceGetCount():
        return len(cards)

    @answers
    def nvmlDeviceGetHandleByIndex(index):
        return cards[index]

    @answers
    def nvmlDeviceGetHandleByUUID(uuid):
        return by_uuid(uuid)

    @answers
    def nvmlDeviceGetUUID(handle):
        return handle.uuid

    @answers
    def nvmlDeviceGetName(handle):
        return handle.name

    @answers
    def nvmlDeviceGetMemoryInfo(handle, version=None):
        return SimpleNamespace(free=handle.free, total=handle.free + GIB, used=GIB)

    @answers
    def nvmlDeviceGetCudaComputeCapability(handle):
        return handle.capability

    @answers
    def nvmlDeviceGetCpuAffinity(handle, cpuSetSize):
        if not handle.knows_cores:
            raise nvml.NVMLError_NotSupported("Not Supported")
        assert cpuSetSize == math.ceil(os.cpu_count() / 64)
        return [1] * cpuSetSize

    @answers
    def nvmlDeviceGetMigMode(device):
        if not device.knows_mig:
            raise nvml.NVMLError_NotSupported("Not Supported")
        return [int(device.parts is not None)] * 2

    @answers
    def nvmlDeviceGetMaxMigDeviceCount(device):
        return 7

    @answers
    def nvmlDeviceGetMigDeviceHandleByIndex(device, index):
        if index >= len(device.parts):
            raise nvml.NVMLError_NotFound("Not Found")
        return device.parts[index]

    @answers
    def nvmlDeviceGetGpuInstanceId(device):
        return device.group

    @answers
    def nvmlDeviceGetComputeInstanceId(device):
        return 0

    @answers
    def nvmlDeviceIsMigDeviceHandle(device):
        return int(isinstance(device, Part))

    @answers
    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(migDevice):
        return migDevice.card

    @answers
    def nvmlDeviceGetUtilizationRates(handle):
        raise nvml.NVMLError_NotSupported("Not Supported")

    return nvml


A, B = "GPU-8f3c0000-aaaa-0000-0000-000000000001", "GPU-8f3d0000-bbbb-0000-0000-000000000002"
MIG_1, MIG_2 = "MIG-41b30000-0000-0000-0000-000000000001", "MIG-65b70000-0000-0000-0000-0002"


def two():
    return [Card(A), Card(B)]


def mixed():
    return [Card(A, "NVIDIA RTX A5000", 23 * GIB, (8, 6)), Card(B)]


def sliced():
    return Card(A, free=70 * GIB, parts=[Part(MIG_1, 9 * GIB, 3), Part(MIG_2, 19 * GIB, 5)])


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Set up a machine: its cards, variables, packages and torch's CUDA; return its driver."""
    for name in ("cuml", "cupy", "rmm", "dask_cuda", "torch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.setattr(gpus, "find_spec", lambda name: PathFinder.find_spec(name, [str(tmp_path)]))
    monkeypatch.syspath_prepend(tmp_path / "distributions")

    def set_up(cards, visible=None, order=None, torch_cuda="13.0", cupy="cupy_cuda13x", **driver):
        version = f"__version__ = '2.13.0'\ncuda = {torch_cuda!r}\n"
        (tmp_path / "torch" / "version.py").write_text(version)
        installed = tmp_path / "distributions" / f"{cupy}-14.2.0.dist-info"
        installed.mkdir(parents=True)
        (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {cupy}\nVersion: 14\n")
        for name, value in {"CUDA_VISIBLE_DEVICES": visible, "CUDA_DEVICE_ORDER": order}.items():
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)
        nvml = stand_in(cards, **driver)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        return nvml

    return set_up


def test_all_gpus_of_a_stand_in(machine):
    nvml = machine(two())
    start = gpus.local_gpus("all", memory_limit=5 * GIB)
    assert start.gpus == (A, B)
    assert (start.n_workers, start.memory_limit) == (2, 5 * GIB)
    assert start.pool_bytes % 256 == 0
    assert start.pool_bytes == pytest.approx(0.8 * 79 * GIB, abs=256)
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, (A, B)),
        ("1,0", (B, A)),
        (B, (B,)),
        ("GPU-8f3c", (A,)),
        ("GPU-8f3d, GPU-8f3c", (B, A)),
        ("0,GPU-8f3c", (A,)),
        ("1,-1,0", (B,)),
        ("1,2,0", (B,)),
        ("0,GPU-0123,1", (A,)),
        ("0,GPU-8f3,1", (A,)),
        ("0,,1", (A,)),
    ],
)
def test_cuda_visible_devices_names_gpus_of_a_stand_in(machine, visible, found):
    machine(two(), visible)
    assert gpus.local_gpus("all").gpus == found
    # distributed looks the first name of this process up: it must be a whole one
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == (",".join(found) if visible else None)
    assert gpus.local_gpus("all").gpus == found


def test_numbers_asked_for_count_what_is_visible_of_a_stand_in(machine):
    machine(two(), "1,0")
    assert gpus.local_gpus("0").gpus == (B,)
    assert gpus.local_gpus("1").gpus == (A,)


@pytest.mark.parametrize("visible", ["", "-1", "GPU-8f3", "2", "MIG-41b3", "none"])
def test_nothing_visible_of_a_stand_in(machine, visible):
    machine(two(), visible)
    with pytest.raises(ResourceError, match="No GPU is visible to this process. Check"):
        gpus.local_gpus("all")


@pytest.mark.parametrize(
    ("visible", "order"), [("0", None), ("1", "FASTEST_FIRST"), ("1,-1", None)]
)
def test_numbers_of_cards_that_differ_are_refused_of_a_stand_in(machine, visible, order):
    machine(mixed(), visible, order)
    with pytest.raises(
        InputError, match="a number in CUDA_VISIBLE_DEVICES may mean another"
    ) as told:
        gpus.local_gpus("all")
    assert "NVIDIA H100 80GB HBM3, NVIDIA RTX A5000" in str(told.value)
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in str(told.value)


@pytest.mark.parametrize(
    ("visible", "order", "found"),
    [
        ("1", "PCI_BUS_ID", (B,)),
        ("1,0", None, (B, A)),
        ("GPU-8f3d", None, (B,)),
        (None, None, (A, B)),
    ],
)
def test_cards_of_a_stand_in_that_differ_are_clear(machine, visible, order, found):
    machine(mixed(), visible, order)
    start = gpus.local_gpus("all")
    assert start.gpus == found
    # one size for all: what the smallest has, as a pool grows and must not be too large
    least = 23 if A in found else 79
    assert start.pool_bytes == pytest.approx(0.8 * least * GIB, abs=256)


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, (MIG_1, MIG_2)),
        ("0", (MIG_1, MIG_2)),
        (MIG_2, (MIG_2,)),
        ("MIG-65b7,MIG-41b3", (MIG_2, MIG_1)),
        (f"MIG-{A}/5/0", (MIG_2,)),
        ("GPU-8f3c", (MIG_1, MIG_2)),
    ],
)
def test_mig_instances_of_a_stand_in(machine, visible, found):
    machine([sliced()], visible)
    start = gpus.local_gpus("all")
    assert start.gpus == found
    least = 9 if MIG_1 in found else 19  # the instance's memory, not its card's
    assert start.pool_bytes == pytest.approx(0.8 * least * GIB, abs=256)


def test_instances_and_whole_gpus_of_a_stand_in_are_not_mixed(machine):
    machine([sliced(), Card(B)])
    with pytest.raises(InputError, match="on whole GPUs or on MIG instances") as told:
        gpus.local_gpus("all")
    assert "0 (NVIDIA H100 80GB HBM3 MIG 3g), 1 (NVIDIA H100 80GB HBM3 MIG 5g)" in str(told.value)
    assert gpus.local_gpus("0,1").gpus == (MIG_1, MIG_2)
    assert gpus.local_gpus("2").gpus == (B,)


def test_a_card_of_a_stand_in_that_knows_no_mig(machine):
    machine([Card(A, knows_mig=False)])
    assert gpus.local_gpus("all").gpus == (A,)


def test_a_card_without_cores_is_started_by_number_of_a_stand_in(machine):
    machine([Card(A, "other", knows_cores=False), Card(B, knows_cores=False)], "GPU-8f3d")
    for _ in range(2):
        assert gpus.local_gpus("all").gpus == ("1",)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == B


@pytest.mark.parametrize(
    ("capability", "cupy", "told"),
    [
        (
            (6, 1),
            "cupy_cuda13x",
            "7.5 or more. GPU 1 (old) has 6.1. Give others, as --gpus 0,2. CPUs",
        ),
        (
            (7, 0),
            "cupy_cuda13x",
            "7.5 or more. GPU 1 (old) has 7.0. Give others, as --gpus 0,2, or",
        ),
        ((6, 1), "cupy_cuda12x", "7.0 or more. GPU 1 (old) has 6.1."),
    ],
)
def test_an_old_card_of_a_stand_in_is_refused(machine, capability, cupy, told):
    machine([Card(A), Card(B, "old", capability=capability)], cupy=cupy)
    with pytest.raises(ResourceError) as error:
        gpus.local_gpus("all")
    assert told in str(error.value)
    assert gpus.local_gpus("0").gpus == (A,)  # where it is not asked for it does no harm


@pytest.mark.parametrize(
    ("capability", "cupy"),
    [((7, 5), "cupy_cuda13x"), ((7, 0), "cupy_cuda12x"), ((12, 0), "cupy_cuda13x")],
)
def test_a_card_of_a_stand_in_that_is_new_enough(machine, capability, cupy):
    machine([Card(A, capability=capability)], cupy=cupy)
    assert gpus.local_gpus("all").gpus == (A,)


def test_a_full_card_of_a_stand_in_is_refused(machine):
    machine([Card(A, free=4 * GIB - GIB // 2), Card(B, free=4 * GIB)])
    with pytest.raises(ResourceError, match="4 GiB of free memory. GPU 0 .* has 3.5 GiB. End what"):
        gpus.local_gpus("all")
    assert gpus.local_gpus("1").gpus == (B,)


def test_an_old_driver_of_a_stand_in_is_refused(machine):
    nvml = machine(two(), driver="570.86.15", cuda=12080)
    with pytest.raises(
        ResourceError, match="first driver is 580. The driver .* is 570.86.15"
    ) as told:
        gpus.local_gpus("all")
    assert "scapedist[cuda12]" in str(told.value)
    assert nvml.open == 0


def test_a_driver_of_a_stand_in_that_is_new_enough_for_cuda_12(machine):
    machine(two(), driver="570.86.15", cuda=12080, cupy="cupy_cuda12x")
    assert gpus.local_gpus("all").gpus == (A, B)


@pytest.mark.parametrize("error", ["LibraryNotFound", "DriverNotLoaded", "NoPermission", "Unknown"])
def test_no_driver_of_a_stand_in(machine, error):
    machine(two(), failing={"nvmlInit": error})
    with pytest.raises(
        ResourceError, match=f"driver does not answer \\({error}\\). Check `nvidia-smi`"
    ):
        gpus.local_gpus("all")


@pytest.mark.parametrize(
    ("function", "error"),
    [("nvmlDeviceGetHandleByIndex", "GpuIsLost"), ("nvmlDeviceGetMemoryInfo", "NotSupported")],
)
def test_a_driver_of_a_stand_in_that_fails_later(machine, function, error):
    nvml = machine(two(), failing={function: error})
    with pytest.raises(ResourceError, match=f"does not tell of this machine's GPUs \\({error}\\)"):
        gpus.local_gpus("all")
    assert nvml.open == 0


@pytest.mark.parametrize("asked", ["", "0,0", "x", "0,"])
def test_gpus_that_cannot_be_asked_for_of_a_stand_in(machine, asked):
    machine(two())
    with pytest.raises(InputError, match="`all` or different numbers"):
        gpus.local_gpus(asked)


@pytest.mark.parametrize("asked", ["2", "0,5", "-1"])
def test_gpus_that_are_not_there_of_a_stand_in(machine, asked):
    machine(two())
    with pytest.raises(InputError, match="There is no GPU .* There are: 0 .NVIDIA"):
        gpus.local_gpus(asked)


@pytest.mark.parametrize(
    ("cupy", "extra"), [("cupy_cuda13x", "cuda13"), ("cupy_cuda12x", "cuda12")]
)
def test_a_torch_for_cpus_is_refused(machine, cupy, extra):
    machine(two(), torch_cuda=None, cupy=cupy)
    with pytest.raises(
        ResourceError, match="built for CUDA. 2.13.0 is installed, which is not"
    ) as told:
        gpus.local_gpus("all")
    assert f"pip install 'scapedist[{extra}]'" in str(told.value)


def test_the_installed_torch_is_known_for_what_it_is(machine, monkeypatch):
    import torch

    machine(two())
    monkeypatch.setattr(
        gpus,
        "find_spec",
        lambda name, find=gpus.find_spec: torch.__spec__ if name == "torch" else find(name),
    )
    if torch.version.cuda is None:
        with pytest.raises(ResourceError) as told:
            gpus.check_packages()
        assert torch.__version__ in str(told.value)
    else:
        gpus.check_packages()


@pytest.mark.parametrize("name", ["cuml", "cupy", "rmm", "dask_cuda"])
def test_a_missing_package_is_named(machine, tmp_path, name):
    machine(two())
    (tmp_path / name / "__init__.py").unlink()
    (tmp_path / name).rmdir()
    with pytest.raises(ResourceError, match=f"{name} is not installed"):
        gpus.local_gpus("all")


# -- where dask-cuda is installed (it needs no GPU until its workers begin)


@pytest.fixture
def its_utils(machine, monkeypatch):
    """dask-cuda's look-ups on a stand-in with a MIG card and one that tells no cores."""
    utils = pytest.importorskip("dask_cuda.utils")

    def set_up(*cards):
        monkeypatch.setattr(utils, "pynvml", machine(list(cards)))
        return utils

    return set_up


@pytest.mark.parametrize("uuid", [MIG_2, B])
def test_dask_cuda_looks_up_what_it_is_told_of_a_stand_in(its_utils, uuid):
    utils = its_utils(sliced(), Card(B))
    told = utils.nvml_device_index(0, [utils.parse_cuda_visible_device(uuid)])
    assert utils.get_cpu_affinity(told) == list(range(0, 64 * math.ceil(os.cpu_count() / 64), 64))
    assert utils.parse_device_memory_limit("default", device_index=told) > 0
    assert utils.has_device_memory_resource(told)


def test_dask_cuda_needs_a_number_where_cores_are_not_told_of_a_stand_in(its_utils):
    utils = its_utils(Card(A, knows_cores=False))
    with pytest.raises(TypeError):
        utils.get_cpu_affinity(A)
    with pytest.warns(UserWarning, match="default affinity"):
        assert utils.get_cpu_affinity(0)


def test_dask_cuda_keeps_the_bytes_of_a_pool_of_a_stand_in(its_utils):
    utils = its_utils(Card(A), Card(B, free=20 * GIB))
    assert utils.parse_device_bytes(16 * GIB, alignment_size=256) == 16 * GIB
    # a fraction is of the first card, whatever the worker's: too much for a smaller one
    assert utils.parse_device_bytes(0.8, alignment_size=256) > 21 * GIB


@pytest.mark.slow
@pytest.mark.parametrize("cards", [two(), [sliced()]], ids=["whole", "MIG"])
def test_workers_of_a_stand_in_begin(machine, monkeypatch, cards):
    pytest.importorskip("dask_cuda")
    nvml = machine(cards, "0" if len(cards) == 1 else "GPU-8f3d,GPU-8f3c")
    import dask_cuda.utils
    from distributed.diagnostics import nvml as diagnostics

    for module in (dask_cuda.utils, diagnostics):
        monkeypatch.setattr(module, "pynvml", nvml)
    monkeypatch.setattr(diagnostics, "NVML_STATE", diagnostics.NVMLState.UNINITIALIZED)
    monkeypatch.setenv("DASK_CUDA_TEST_DISABLE_DEVICE_SPECIFIC", "1")  # no pool: there is no GPU
    start = gpus.local_gpus("all")
    client, cluster = LocalGpus.begin(start)
    try:
        client.wait_for_workers(2, timeout=60)
        names = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
        seen = client.run(lambda: [os.environ.get(name) for name in names])
        visible = {each[0] for each in seen.values()}
        assert visible == {",".join(start.gpus), ",".join(reversed(start.gpus))}
        assert {each[1] for each in seen.values()} == {"PCI_BUS_ID"}
    finally:
        client.close()
        cluster.close()
