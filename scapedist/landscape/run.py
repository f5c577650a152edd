"""A run: one output directory, its stages, and which of them are up to date."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from scapedist.errors import InputError, RunError
from scapedist.landscape import analyse, generate
from scapedist.landscape.settings import (
    EmbedSettings,
    GenerateSettings,
    MaskSettings,
    PcaSettings,
    ReportSettings,
    SketchSettings,
    StatesSettings,
    changed,
    from_record,
)
from scapedist.model.workdir import Model, open_model, sha256_of
from scapedist.store import GROUP, STAGES, RunStore, disk_errors, embeddings, write_text
from scapedist.workers import Serial, Workers

Progress = Callable[[str, int, int], None]
"""Called with what is being made, how many are done, and how many there are."""
_VERSIONS = ("scapedist", "numpy", "scipy", "torch", "zarr", "scikit-learn", "distributed")
_EARLY = ("sketch", "generate")


class Run:
    """A run directory and its stages; each is skipped where nothing it depends on changed.

    Parameters
    ----------
    directory
        An existing run; see :meth:`create` for a new one.
    progress
        Told how far a stage is.

    Raises
    ------
    RunError
        Where there is no run.
    """

    def __init__(self, directory: str | Path, progress: Progress | None = None) -> None:
        self.directory = Path(directory)
        self.store = RunStore(self.directory, "r+")
        _ = self.store.source  # a run that was made to its end
        self.progress: Progress = progress or (lambda what, done, total: None)
        self._model: Model | None = None

    @classmethod
    def create(
        cls,
        workdir: str | Path,
        epoch: int,
        output: str | Path,
        progress: Progress | None = None,
        overwrite: bool = False,
        check_weights: bool = True,
    ) -> Run:
        """Open the run of a model in an output directory, or make it.

        Without ``check_weights`` the weights are read when volumes are decoded.

        Raises
        ------
        InputError
            Where the model cannot be loaded.
        RunError
            Where the directory holds a run of another model, or is a file.
        """
        model = open_model(workdir, epoch, check_weights=check_weights)
        output = Path(output)
        source = {
            "workdir": str(Path(workdir).resolve()),
            "epoch": epoch,
            "n_particles": len(model.latents),
            "zdim": model.latents.shape[1],
            "model_box_size": model.box_size,
            "box_size": model.box_size,
            "pixel_size_angstroms": model.pixel_size_angstroms,
            "architecture": model.architecture,
            "hashes": model.file_hashes(),
            "notes": model.notes,
        }
        if (output / GROUP).exists():
            if overwrite:
                _remove(output)
            else:
                _check_same(RunStore(output), source, output)
        elif output.exists() and not output.is_dir():
            raise RunError(
                f"An output is a directory. {output} is a file. Choose another --output."
            )
        store = RunStore(output, "r+" if (output / GROUP).exists() else "w-")
        with store.lock(), disk_errors(output):  # also what was killed meanwhile, or damaged since
            if not _holds(store, "latents", model.latents):
                store.write("latents", model.latents, ("particle", "latent"))
            if not store.has_source:
                store.write_source(source)
        run = cls(output, progress)
        run._model = model
        return run

    @property
    def model(self) -> Model:
        """The run's model, checked to be the one that the run was made from."""
        if self._model is None:
            source = self.store.source
            model = open_model(source["workdir"], source["epoch"], check_weights=False)
            hashes = model.file_hashes()
            for name, digest in source["hashes"].items():
                if hashes.get(name) != digest:
                    raise RunError(
                        f"A run stays with its model. {model.files.get(name, name)} changed since "
                        f"{self.directory} was made. Restore it, or start again in another "
                        "--output."
                    )
            self._model = model
        return self._model

    # -- stages

    def sketch(self, **options: Any) -> Run:
        """Choose the particles to decode; options as in :class:`SketchSettings`."""
        settings = self._settings("sketch", SketchSettings, options)
        inputs = {}
        if settings.exclude_particles:
            inputs["exclude_particles"] = _hash_file(settings.exclude_particles)
        self._stage(
            "sketch", settings, inputs, lambda begin: generate.sketch(self, settings, begin)
        )
        return self

    def generate(
        self, workers: Workers | None = None, memory_limit: int | None = None, **options: Any
    ) -> Run:
        """Decode the sketch's volumes; options as in :class:`GenerateSettings`.

        Parameters
        ----------
        workers
            Where to decode; default this process.
        memory_limit
            Bytes a worker may use.

        With a masked store, options of :class:`MaskSettings` are taken as well.
        """
        mask_names = {field.name for field in dataclasses.fields(MaskSettings)}
        mask_options = {k: v for k, v in options.items() if k in mask_names}
        options = {k: v for k, v in options.items() if k not in mask_names}
        settings = self._settings("generate", GenerateSettings, options)
        mask = self._settings("mask", MaskSettings, mask_options)
        inputs = dict(self.store.source["hashes"])
        if settings.store == "masked":
            inputs["mask"] = json.dumps(dataclasses.asdict(mask)) + _hash_file(mask.mask)
        fingerprint = self._fingerprint("generate", settings, inputs)
        self._stage(
            "generate",
            settings,
            inputs,
            lambda begin: generate.generate(
                self, settings, mask, workers or Serial(), memory_limit, fingerprint, begin
            ),
        )
        self.store.journal.unlink(missing_ok=True)
        return self

    def mask(self, **options: Any) -> Run:
        """Choose the voxels to analyse; options as in :class:`MaskSettings`."""
        settings = self._settings("mask", MaskSettings, options)
        inputs = {"mask": _hash_file(settings.mask)}
        self._stage("mask", settings, inputs, lambda begin: analyse.mask(self, settings, begin))
        return self

    def pca(self, memory_limit: int | None = None, **options: Any) -> Run:
        """Fit the components; options as in :class:`PcaSettings`.

        ``exclude_states`` holds for this call alone: without it all volumes are taken.
        """
        options["exclude_states"] = tuple(options.get("exclude_states") or ())
        settings = self._settings("pca", PcaSettings, options)
        included = analyse.included_volumes(self, settings.exclude_states)
        inputs = {"included": hashlib.sha256(np.packbits(included).tobytes()).hexdigest()}
        self._stage(
            "pca",
            settings,
            inputs,
            lambda begin: analyse.pca(self, settings, included, memory_limit, begin),
        )
        return self

    def states(self, **options: Any) -> Run:
        """Group the volumes into states; options as in :class:`StatesSettings`."""
        settings = self._settings("states", StatesSettings, options)
        self._stage("states", settings, {}, lambda begin: analyse.states(self, settings, begin))
        with self.store.lock(), disk_errors(self.directory):
            self._place()
        return self

    # -- beside the stages

    def embed(
        self,
        workers: Workers | None = None,
        memory_limit: int | None = None,
        strict: bool = True,
        **options: Any,
    ) -> Run:
        """Put every particle on the components; options as in :class:`EmbedSettings`.

        Writes ``embedding/<method>/coordinates`` (n_particles, r) float32 and
        ``embedding/<method>/residual`` (n_particles,) float32, the squared norm of masked voxels
        that the components miss; with ``reduced`` also ``error`` (expected norm of the error) and
        ``exact`` (which particles were decoded).

        Parameters
        ----------
        workers, memory_limit
            As for :meth:`generate`.
        strict
            Refuse where ``reduced`` does not reach its tolerance, instead of noting it.

        Raises
        ------
        InputError
            Where the method does not apply, or does not reach its tolerance.
        RunError
            Where there are no components, or the decoder does not give the run's volumes.
        """
        from scapedist.landscape import embed
        from scapedist.landscape.embedder import Embedder

        settings = changed(EmbedSettings(), options)
        name = f"embedding/{embed.embed_method(settings)}"
        with self.store.lock(), disk_errors(self.directory):
            embedder = Embedder(self, workers or Serial(), memory_limit)
            fingerprint = embedder.fingerprint(dataclasses.asdict(settings))
            self._beside(
                name,
                settings,
                fingerprint,
                lambda begin: embed.embed(embedder, settings, strict, begin),
            )
            embedder.remove_rows(embed.embed_method(settings))
            self._find_missed(embedder)
            self._place()
        return self

    def _beside(
        self,
        name: str,
        settings: Any,
        fingerprint: str,
        body: Callable[[Callable[[], None]], dict[str, Any]],
    ) -> None:
        """Do something beside the stages, unless its record says that it is done."""
        held = self.store.beside.get(name)
        if held is not None and held["fingerprint"] == fingerprint:
            return
        started = time.perf_counter()
        results = body(lambda: self.store.withdraw(name))
        self.store.withdraw(name)
        if "report" in self.store.stages:  # it shows none of this
            last = self.store.last_settings("report") or {"settings": {}}
            self.store.begin_stage("report", last["settings"])
        self.store.finish_beside(
            name,
            {
                "settings": dataclasses.asdict(settings) if settings is not None else {},
                "fingerprint": fingerprint,
                "versions": {name: _version(name) for name in _VERSIONS},
                "seconds": round(time.perf_counter() - started, 3),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "results": results,
            },
        )

    def _find_missed(self, embedder: Any) -> None:
        from scapedist.landscape import particles

        method = particles.placed_by(self.store)
        fingerprint = embedder.fingerprint("missed", self._record_of(f"embedding/{method}"))
        self._beside(
            "missed", None, fingerprint, lambda begin: particles.find_missed(embedder, method)
        )

    def _place(self) -> None:
        """Give particles the states of their own volumes, where there are states and volumes."""
        from scapedist.landscape import particles

        states = self.store.stages.get("states")
        if states is None or not embeddings(self.store.beside):
            return
        method = particles.placed_by(self.store)
        base = [states["fingerprint"], self._record_of(f"embedding/{method}")]
        self._beside(
            "particles",
            None,
            hashlib.sha256(json.dumps(base).encode()).hexdigest(),
            lambda begin: particles.place_particles(self, method),
        )

    def _record_of(self, name: str) -> str:
        record: str = self.store.beside[name]["fingerprint"]
        return record

    def crosscheck(
        self,
        workers: Workers | None = None,
        memory_limit: int | None = None,
        sample: int | None = 500,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Compare all embeddings with exact decoding, and write ``crosscheck.json``.

        Parameters
        ----------
        workers, memory_limit
            As for :meth:`generate`.
        sample
            Random particles to compare on, never those that a method was trained with; None for
            all, once they are embedded exactly.
        seed
            Of the sample.

        Returns
        -------
        dict
            ``sample``, ``exact_seconds_a_particle`` and ``methods``: for each the figures of
            :func:`scapedist.analysis.crosscheck.agreement`, states changed, neighbours kept, the
            worst particles, and its cost.
        """
        from scapedist.landscape import crosscheck
        from scapedist.landscape.embedder import Embedder

        with self.store.lock(), disk_errors(self.directory):
            embedder = Embedder(self, workers or Serial(), memory_limit)
            beside = self.store.beside
            base = [beside[n]["fingerprint"] for n in sorted(beside) if n.startswith("embedding/")]
            states = self.store.stages.get("states", {}).get("fingerprint")
            self._beside(
                "crosscheck",
                None,
                embedder.fingerprint("crosscheck", base, states, sample, seed),
                lambda begin: crosscheck.crosscheck(embedder, sample, seed),
            )
            results: dict[str, Any] = self.store.beside["crosscheck"]["results"]
            write_text(self.directory / "crosscheck.json", json.dumps(results, indent=1) + "\n")
        return results

    def embed_latents(self, latents: np.ndarray) -> dict[str, np.ndarray]:
        """Put any latents on the components by the run's reduced map.

        Parameters
        ----------
        latents : (n, zdim) float

        Returns
        -------
        dict
            ``coordinates`` (n, r) float32, ``residual`` (n,) and ``error`` (n,), ``nearest_volume``
            (n,) and ``distance`` (n,) to it, and where there are states ``state`` and ``margin``.
        """
        from scapedist.landscape import embed, particles
        from scapedist.landscape.embedder import Embedder

        if "embedding/map" not in self.store.beside:
            raise RunError(
                f"New latents are embedded by the reduced map. {self.directory} has none that is "
                f"up to date. Give `scapedist embed {self.directory} --method reduced` first."
            )
        embedder = Embedder(self, Serial(), None)
        found = embed.apply_map(embedder, latents)
        return found | particles.place_rows(self.store, found["coordinates"], found["residual"])

    def grow(self, workers: Workers | None = None, memory_limit: int | None = None) -> int:
        """Add representatives of what the sketch missed, and do all stages with it anew.

        Volumes that are there are kept; embeddings and report are to be made again.

        Returns
        -------
        int
            How many volumes were added; 0 where nothing was missed.
        """
        if "missed" not in self.store.beside:
            raise RunError(
                f"A sketch grows by what an embedding finds missed. {self.directory} has none that "
                f"is up to date. Give `scapedist embed {self.directory}` first."
            )
        if "volumes/0" not in self.store or generate.made_of_maps(self):
            raise RunError(
                "A sketch grows where whole volumes are stored and the model makes them. This "
                f"one of {self.directory} cannot. Make a larger sketch in another --output."
            )
        old = from_record(SketchSettings, self.store.last_settings("sketch"))
        fresh = np.setdiff1d(self.store.read("missed/representative"),
                             self.store.read("sketch/particle"))  # fmt: skip
        if not len(fresh):
            return 0
        entries = generate.stored_entries(self.store, generate.FULL)
        added = (*old.added, *fresh.tolist())
        self.sketch(added=added)
        with self.store.lock():
            n = self.store.array("sketch/particle").shape[0]
            array = self.store.array(generate.FULL)
            array.resize((n, *array.shape[1:]))
            settings = from_record(GenerateSettings, self.store.last_settings("generate"))
            inputs = dict(self.store.source["hashes"])
            self.store.journal_write(self._fingerprint("generate", settings, inputs), entries)
        self.generate(workers, memory_limit)
        self.mask()
        self.pca(memory_limit)
        self.states()
        return len(fresh)

    def summary(self) -> list[str]:
        """What the embeddings came to, in a few lines; none without one."""
        beside, lines = self.store.beside, []
        for name, record in beside.items():
            results = record["results"]
            if not name.startswith("embedding/") or name == "embedding/map":
                continue
            line = f"{name}: {results['particles']} particles on {results['components']} components"
            if "relative_error" in results:
                line += f", relative error {results['relative_error']:.1e}"
            if results.get("decoded_exactly"):
                line += f", {results['decoded_exactly']} decoded exactly"
            lines.append(line)
            if results.get("reached") is False:
                lines.append(
                    f"  the tolerance {results['tolerance']:.1e} was not reached; a larger sketch "
                    "or --method exact would be nearer"
                )
        for method, record in (
            beside.get("crosscheck", {}).get("results", {}).get("methods", {}).items()
        ):
            lines.append(
                f"checked on {beside['crosscheck']['results']['sample']} particles: {method} has "
                f"relative error {record['relative_error']:.1e}, R2 {min(record['r2'][:10]):.5f} "
                "or more on each of the first ten components"
            )
        if "missed" in beside:
            missed = beside["missed"]["results"]
            groups = f" in {len(missed['groups'])} groups" if missed["missed"] else ""
            lines.append(f"{missed['missed']} particles that no sketch volume represents{groups}")
        if "particles" in beside:
            placed = beside["particles"]["results"]
            lines.append(
                f"{placed['differ']} particles have another state by their own volume than by "
                "their sketch group"
            )
        return lines

    def report(self, **options: Any) -> Path:
        """Write plots and ``report.html``; options as in :class:`ReportSettings`."""
        from scapedist.output.report import write_report

        settings = self._settings("report", ReportSettings, options)

        def body(begin: Callable[[], None]) -> dict[str, Any]:
            begin()
            write_report(self.store.group, self.directory, umap=settings.umap)
            return {}

        inputs = {name: record["fingerprint"] for name, record in self.store.beside.items()}
        self._stage("report", settings, inputs, body)
        return self.directory / "report.html"

    # -- bookkeeping

    def _settings(self, stage: str, kind: type[Any], options: dict[str, Any]) -> Any:
        """The stage's last settings (or the defaults) with the options given."""
        for name in ("mask", "exclude_particles", "maps"):
            if options.get(name):
                options[name] = str(Path(options[name]).resolve())
        return changed(from_record(kind, self.store.last_settings(stage)), options)

    def _fingerprint(self, stage: str, settings: Any, inputs: dict[str, Any]) -> str:
        before = STAGES.index(stage) - 1
        upstream = self.store.source["hashes"]
        if before >= 0:
            record = self.store.stages.get(STAGES[before])
            if record is None:
                raise RunError(
                    f"{stage} builds on {STAGES[before]}, which is not complete in "
                    f"{self.directory}. Give `scapedist {STAGES[before]} "
                    f"{'WORKDIR EPOCH --output ' if before == 0 else ''}{self.directory}` first."
                )
            upstream = record["fingerprint"]
        text = json.dumps([stage, dataclasses.asdict(settings), inputs, upstream], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _stage(
        self,
        stage: str,
        settings: Any,
        inputs: dict[str, Any],
        body: Callable[[Callable[[], None]], dict[str, Any]],
    ) -> None:
        """Do a stage, unless its record says that it is done with these settings and inputs.

        ``body`` gets a function to call before its first write, which withdraws the records of
        the stage and of those after it.
        """
        with self.store.lock():
            fingerprint = self._fingerprint(stage, settings, inputs)
            done = self.store.stages.get(stage)
            if done is not None and done["fingerprint"] == fingerprint:
                return
            if stage in _EARLY:
                self._check_replaceable(stage, settings, fingerprint)
            self.progress(stage, 0, 0)
            started = time.perf_counter()
            chosen = dataclasses.asdict(settings)
            with disk_errors(self.directory):
                results = body(lambda: self.store.begin_stage(stage, chosen))
                self.store.finish_stage(
                    stage,
                    {
                        "settings": chosen,
                        "fingerprint": fingerprint,
                        "versions": {name: _version(name) for name in _VERSIONS},
                        "seconds": round(time.perf_counter() - started, 3),
                        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                        "results": results,
                    },
                )

    def _check_replaceable(self, stage: str, settings: Any, fingerprint: str) -> None:
        """Volumes are dear: other settings of what they depend on need another directory."""
        journal = self.store.journal_fingerprint
        has_volumes = "generate" in self.store.stages or journal is not None
        held = journal if stage == "generate" else None
        if stage in self.store.stages:
            held = self.store.stages[stage]["fingerprint"]
        if not has_volumes or held in (None, fingerprint) or _is_grown(stage, settings, self.store):
            return
        last = (self.store.last_settings(stage) or {"settings": {}})["settings"]
        asked = dataclasses.asdict(settings)
        different = [
            f"{name} {value!r}, asked {asked.get(name)!r}"
            for name, value in last.items()
            if asked.get(name) != value
        ]
        raise RunError(
            f"{self.directory} holds volumes of other settings: "
            f"{', '.join(different) or 'a file that they were made with, or its mask, changed'}. "
            "Choose another --output, or --overwrite."
        )


def _is_grown(stage: str, settings: Any, store: RunStore) -> bool:
    """Whether a sketch is the one that was there, with more particles."""
    if stage != "sketch" or stage not in store.stages:
        return False
    held = from_record(SketchSettings, store.stages[stage])
    kept = settings.added[: len(held.added)]
    return bool(kept == held.added and dataclasses.replace(settings, added=held.added) == held)


def _check_same(store: RunStore, source: dict[str, Any], output: Path) -> None:
    """Refuse an output that holds a run of another model."""
    if not store.has_source:
        return
    held = store.source
    if held["hashes"] != source["hashes"]:
        raise RunError(
            f"{output} holds another run: epoch {held['epoch']} of {held['workdir']}, or that "
            "model's files changed. Choose another --output, or --overwrite."
        )


def _remove(output: Path) -> None:
    """Take away what a run consists of, and nothing else."""
    import shutil

    RunStore(output)  # an error where it is not a run of ours
    for name in (GROUP, "maps", "states", "plots"):
        shutil.rmtree(output / name, ignore_errors=True)
    for path in (output / "report.html", output / "volumes.journal", *output.glob("*.rows")):
        path.unlink(missing_ok=True)
    (output / "crosscheck.json").unlink(missing_ok=True)


def _holds(store: RunStore, name: str, data: np.ndarray) -> bool:
    """Whether an array is there, sound and equal to some data."""
    try:
        return bool(np.array_equal(store.read(name), data))
    except RunError:
        return False


def _hash_file(path: str | None) -> str:
    """SHA-256 of a file that settings name; empty without one."""
    if path is None:
        return ""
    try:
        return sha256_of(Path(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Give its path.") from None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
