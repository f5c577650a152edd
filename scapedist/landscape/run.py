"""A run: one output directory, its stages, and which of them are up to date."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scapedist.errors import RunError
from scapedist.landscape import analyse, generate, grouping
from scapedist.landscape.record import Progress, Recorded, hash_file
from scapedist.landscape.whole import KEPT, forget_passes, measured_seconds, plan_whole, told_plan
from scapedist.model.workdir import open_model
from scapedist.settings import (
    EmbedSettings,
    GenerateSettings,
    MaskSettings,
    PcaSettings,
    PopulationSettings,
    ReportSettings,
    SketchSettings,
    StatesSettings,
    changed,
    from_record,
)
from scapedist.store import GROUP, RunStore, disk_errors, embeddings, write_text
from scapedist.workers import Serial, Workers


class Run(Recorded):
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

    # -- stages

    def sketch(self, workers: Workers | None = None, **options: Any) -> Run:
        """Choose the particles to decode; options as in :class:`SketchSettings`.

        Parameters
        ----------
        workers
            Where they have GPUs, one of them finds the particles; default this process.
        """
        settings = self._settings("sketch", SketchSettings, options)
        inputs = {}
        if settings.exclude_particles:
            inputs["exclude_particles"] = hash_file(settings.exclude_particles)
        self._stage(
            "sketch",
            settings,
            inputs,
            lambda begin: generate.sketch(self, settings, workers or Serial(), begin),
        )
        return self

    def generate(self, workers: Workers | None = None, **options: Any) -> Run:
        """Decode the sketch's volumes; options as in :class:`GenerateSettings`.

        Parameters
        ----------
        workers
            Where to decode, and what memory each may use; default this process.

        With a masked store, options of :class:`MaskSettings` are taken as well.
        """
        mask_names = {field.name for field in dataclasses.fields(MaskSettings)}
        mask_options = {k: v for k, v in options.items() if k in mask_names}
        options = {k: v for k, v in options.items() if k not in mask_names}
        settings = self._settings("generate", GenerateSettings, options)
        mask = self._settings("mask", MaskSettings, mask_options)
        inputs = dict(self.store.source["hashes"])
        if settings.store == "masked":
            inputs["mask"] = json.dumps(dataclasses.asdict(mask)) + hash_file(mask.mask)
        fingerprint = self._fingerprint("generate", settings, inputs)
        self._stage(
            "generate",
            settings,
            inputs,
            lambda begin: generate.generate(
                self, settings, mask, workers or Serial(), fingerprint, begin
            ),
        )
        self.store.journal.unlink(missing_ok=True)
        return self

    def mask(self, **options: Any) -> Run:
        """Choose the voxels to analyse; options as in :class:`MaskSettings`."""
        settings = self._settings("mask", MaskSettings, options)
        inputs = {"mask": hash_file(settings.mask)}
        self._stage("mask", settings, inputs, lambda begin: analyse.mask(self, settings, begin))
        return self

    def pca(self, workers: Workers | None = None, **options: Any) -> Run:
        """Fit the components; options as in :class:`PcaSettings`.

        Parameters
        ----------
        workers
            As for :meth:`generate`.

        ``exclude_states`` holds for this call alone: without it all volumes are taken.
        """
        settings, included = self._components(options)
        inputs = {"included": hashlib.sha256(np.packbits(included).tobytes()).hexdigest()}
        fingerprint = self._fingerprint("pca", settings, inputs)
        self._stage(
            "pca",
            settings,
            inputs,
            lambda begin: analyse.pca(
                self, settings, included, workers or Serial(), fingerprint, begin
            ),
        )
        if settings.all_particles:
            forget_passes(self)
        return self

    def cost_of_all_particles(self, workers: Workers, **options: Any) -> str:
        """What ``pca(workers, all_particles=True, ...)`` will take, from a few batches."""
        settings, included = self._components(options)
        plan = plan_whole(self, settings, workers, included)
        return told_plan(plan, measured_seconds(self, workers, plan))

    def _components(self, options: dict[str, Any]) -> tuple[PcaSettings, np.ndarray]:
        """Settings of the components, and which volumes they are fitted to."""
        exclude = tuple(options.get("exclude_states") or ())
        settings = self._settings("pca", PcaSettings, options | {"exclude_states": exclude})
        return settings, analyse.included_volumes(self, settings.exclude_states)

    def states(self, workers: Workers | None = None, **options: Any) -> Run:
        """Group the volumes into states; options as in :class:`StatesSettings`.

        Parameters
        ----------
        workers
            Where they have GPUs, one of them finds the groups; default this process.
        """
        settings = self._settings("states", StatesSettings, options)
        self._stage(
            "states",
            settings,
            {},
            lambda begin: grouping.states(self, settings, workers or Serial(), begin),
        )
        with self.store.lock(), disk_errors(self.directory):
            self._place()
        return self

    # -- beside the stages

    def embed(
        self,
        workers: Workers | None = None,
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
        workers
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
            embedder = Embedder(self, workers or Serial())
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

    def population(self, workers: Workers | None = None, **options: Any) -> Run:
        """Look at all particles together; options as in :class:`PopulationSettings`.

        Writes ``population/``: principal axes of all particles' coordinates, k-means groups with
        the particle nearest to each center, and densities on the leading axes; that particle's
        volume of each group as ``maps/population/group_NN.mrc``.

        Parameters
        ----------
        workers
            As for :meth:`generate`.

        Raises
        ------
        RunError
            Where no particles are embedded.
        """
        from scapedist.landscape import particles, population
        from scapedist.landscape.embedder import Embedder

        settings = changed(PopulationSettings(), options)
        with self.store.lock(), disk_errors(self.directory):
            method = particles.placed_by(self.store)
            embedder = Embedder(self, workers or Serial())
            fingerprint = embedder.fingerprint(
                "population", self._record_of(f"embedding/{method}"), dataclasses.asdict(settings)
            )
            self._beside(
                "population",
                settings,
                fingerprint,
                lambda begin: population.population(embedder, method, settings, begin),
            )
        return self

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
        sample: int | None = 500,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Compare all embeddings with exact decoding, and write ``crosscheck.json``.

        Parameters
        ----------
        workers
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
            embedder = Embedder(self, workers or Serial())
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
            path, text = self.directory / "crosscheck.json", json.dumps(results, indent=1) + "\n"
            if not path.exists() or path.read_text() != text:
                write_text(path, text)
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
        embedder = Embedder(self, Serial())
        found = embed.apply_map(embedder, latents)
        return found | particles.place_rows(self.store, found["coordinates"], found["residual"])

    def grow(self, workers: Workers | None = None) -> int:
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
        self.generate(workers)
        self.mask()
        self.pca(workers)
        self.states(workers)
        return len(fresh)

    def report(self, workers: Workers | None = None, **options: Any) -> Path:
        """Write plots and ``report.html``; options as in :class:`ReportSettings`.

        Parameters
        ----------
        workers
            Where they have GPUs, one of them makes the UMAP; default this process.
        """
        from scapedist.landscape.estimate import umap_by
        from scapedist.output.report import write_report

        settings = self._settings("report", ReportSettings, options)

        def body(begin: Callable[[], None]) -> dict[str, Any]:
            begin()
            umap = umap_by(workers or Serial()) if settings.umap else None
            write_report(self.store.group, self.directory, umap)
            return {}

        inputs = {name: record["fingerprint"] for name, record in self.store.beside.items()}
        self._stage("report", settings, inputs, body)
        return self.directory / "report.html"


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
    for name in (GROUP, "maps", "states", "plots", KEPT):
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
