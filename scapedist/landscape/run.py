"""A run: one output directory, its stages, and which of them are up to date."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scapedist.errors import RunError
from scapedist.files.aside import disk_errors, write_text
from scapedist.landscape.create import prepare_run
from scapedist.landscape.record import Recorded, hash_file
from scapedist.particles import embed, methods, missed, place, population, reduced
from scapedist.particles.exact import Embedder
from scapedist.settings import (
    EmbedSettings,
    GenerateSettings,
    MaskSettings,
    NoSettings,
    PcaSettings,
    PopulationSettings,
    SketchSettings,
    changed,
    from_record,
    those_of,
)
from scapedist.sources.decoded import Decoded, read_weights
from scapedist.sources.open import maps_of, source_of_particles, source_of_sketch
from scapedist.stages import components, components_of_all, mask, sketch, states, volumes
from scapedist.stages.stored_rows import FULL
from scapedist.store import Begin, Progress, embeddings
from scapedist.workers import Workers, or_here
from scapedist.workers.one import umap_by


class Run(Recorded):
    """A run directory and its stages; each is skipped where nothing it depends on changed.

    Parameters
    ----------
    directory
        An existing run; see :meth:`create` for a new one.
    progress
        Called with how far a stage is.

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
        """Open a model's run in an output directory, or make it.

        Without ``check_weights`` the weights are read when volumes are decoded.

        Raises
        ------
        InputError
            Where the model cannot be loaded.
        RunError
            Where the directory holds a run of another model, or is a file.
        """
        model = prepare_run(workdir, epoch, output, overwrite, check_weights)
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
        settings = self._settings("sketch", options)
        inputs = {}
        if settings.exclude_particles:
            inputs["exclude_particles"] = hash_file(settings.exclude_particles)

        def body(begin: Begin) -> dict[str, Any]:
            return sketch.choose_particles(self.store, settings, or_here(workers), begin)

        self._stage("sketch", settings, inputs, body)
        return self

    def generate(self, workers: Workers | None = None, **options: Any) -> Run:
        """Decode the sketch's volumes; options as in :class:`GenerateSettings`.

        Parameters
        ----------
        workers
            Where to decode, and what memory each may use; default this process.

        With a masked store, options of :class:`MaskSettings` are taken as well.
        """
        of_mask = those_of(MaskSettings, options)
        inside = self._settings("mask", of_mask)
        rest = {name: value for name, value in options.items() if name not in of_mask}
        pool = or_here(workers)
        settings = self._settled(rest, pool)
        inputs = dict(self.store.source["hashes"])
        if settings.store == "masked":
            inputs["mask"] = json.dumps(dataclasses.asdict(inside)) + hash_file(inside.mask)
        fingerprint = self._fingerprint("generate", settings, inputs)

        def body(begin: Begin) -> dict[str, Any]:
            source = source_of_sketch(self.store, self.model, settings, pool)
            return volumes.make_volumes(
                self.store, settings, inside, source, pool, fingerprint, begin, self.progress
            )

        self._stage("generate", settings, inputs, body)
        self.store.journal.unlink(missing_ok=True)
        return self

    def mask(self, **options: Any) -> Run:
        """Choose the voxels to analyse; options as in :class:`MaskSettings`."""
        settings = self._settings("mask", options)

        def body(begin: Begin) -> dict[str, Any]:
            return mask.choose_voxels(self.store, settings, begin, self.progress)

        self._stage("mask", settings, {"mask": hash_file(settings.mask)}, body)
        return self

    def pca(self, workers: Workers | None = None, **options: Any) -> Run:
        """Fit the components; options as in :class:`PcaSettings`.

        Parameters
        ----------
        workers
            Workers to compute on, as for :meth:`generate`.

        ``exclude_states`` holds for this call alone; without it all volumes are taken.
        """
        settings, included = self._components(options)
        inputs = {"included": hashlib.sha256(np.packbits(included).tobytes()).hexdigest()}
        fingerprint = self._fingerprint("pca", settings, inputs)

        def body(begin: Begin) -> dict[str, Any]:
            pool, of_all = or_here(workers), None
            if settings.all_particles:
                of_all = partial(
                    components_of_all.whole_subspace,
                    self.store,
                    settings,
                    self._decoder_of_particles(pool),
                    pool,
                    included,
                    fingerprint,
                    self.progress,
                )
            return components.find_components(
                self.store, settings, included, pool, begin, self.progress, of_all
            )

        self._stage("pca", settings, inputs, body)
        if settings.all_particles:
            components_of_all.forget_passes(self.store)
        return self

    def cost_of_all_particles(self, workers: Workers, **options: Any) -> str:
        """The projected cost of ``pca(workers, all_particles=True, ...)``, from a few batches."""
        settings, included = self._components(options)
        source = self._decoder_of_particles(workers)
        return components_of_all.told_cost(self.store, settings, source, workers, included)

    def _components(self, options: dict[str, Any]) -> tuple[PcaSettings, np.ndarray]:
        """The components' settings, and which volumes they are fitted to."""
        exclude = tuple(options.get("exclude_states") or ())
        settings = self._settings("pca", options | {"exclude_states": exclude})
        return settings, components.included_volumes(self.store, settings.exclude_states)

    def _decoder_of_particles(self, workers: Workers) -> Decoded:
        """The source that decodes any particle as the run's volumes were decoded."""
        read_weights(self.model, workers)
        generated = from_record(GenerateSettings, self.store.stages["generate"])
        return source_of_particles(self.store, self.model, generated, workers.device)

    def states(self, workers: Workers | None = None, **options: Any) -> Run:
        """Group the volumes into states; options as in :class:`StatesSettings`.

        Parameters
        ----------
        workers
            Where they have GPUs, one of them finds the groups; default this process.
        """
        settings = self._settings("states", options)

        def body(begin: Begin) -> dict[str, Any]:
            pool, indices = or_here(workers), self.model.stack_indices
            return states.find_states(self.store, settings, indices, pool, begin, self.progress)

        self._stage("states", settings, {}, body)
        with self.store.lock(), disk_errors(self.directory):
            self._place(place.Placing(self.store, or_here(workers), self.progress))
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
            Workers to compute on, as for :meth:`generate`.
        strict
            Refuse where ``reduced`` does not reach its tolerance, instead of noting it.

        Raises
        ------
        InputError
            Where the method does not apply, or does not reach its tolerance.
        RunError
            Where there are no components, or the decoder does not give the run's volumes.
        """
        settings = changed(EmbedSettings(), options)
        method = embed.embed_method(settings)
        with self.store.lock(), disk_errors(self.directory):
            embedder = self.embedder(workers)
            self._beside(
                f"embedding/{method}",
                settings,
                embedder.fingerprint(dataclasses.asdict(settings)),
                lambda begin: embed.embed_particles(embedder, settings, strict, begin),
            )
            embedder.remove_rows(method)
            placing = place.Placing(self.store, embedder.workers, self.progress)
            self._find_missed(embedder, placing)
            self._place(placing)
        return self

    def population(self, workers: Workers | None = None, **options: Any) -> Run:
        """Find axes, groups and densities; options as in :class:`PopulationSettings`.

        Writes ``population/``: principal axes of all particles' coordinates, k-means groups with
        the particle nearest to each center, and densities on the leading axes; that particle's
        volume of each group as ``maps/population/group_NN.mrc``.

        Parameters
        ----------
        workers
            Workers to compute on, as for :meth:`generate`.

        Raises
        ------
        RunError
            Where no particles are embedded.
        """
        settings = changed(PopulationSettings(), options)
        with self.store.lock(), disk_errors(self.directory):
            method = place.placed_by(self.store)
            embedder = self.embedder(workers)
            self._beside(
                "population",
                settings,
                embedder.fingerprint(
                    "population", self._print_of(method), dataclasses.asdict(settings)
                ),
                lambda begin: population.find_population(embedder, method, settings, begin),
            )
        return self

    def embedder(self, workers: Workers | None = None) -> Embedder:
        """The embedder of the run's particles, on workers or in this process."""
        return Embedder(self.store, self.model, or_here(workers), self.progress)

    def _find_missed(self, embedder: Embedder, placing: place.Placing) -> None:
        """Find the particles that no sketch volume represents."""
        method = place.placed_by(self.store)
        self._beside(
            "missed",
            NoSettings(),
            embedder.fingerprint("missed", self._print_of(method)),
            lambda begin: missed.find_missed(embedder, placing.everyone),
        )

    def _place(self, placing: place.Placing) -> None:
        """Give particles the states of their own volumes, where there are states and volumes."""
        made = self.store.stages.get("states")
        if made is None or not embeddings(self.store.beside):
            return
        base = [made["fingerprint"], self._print_of(place.placed_by(self.store))]
        self._beside(
            "particles",
            NoSettings(),
            hashlib.sha256(json.dumps(base).encode()).hexdigest(),
            lambda begin: place.write_placed(placing, self.model.stack_indices),
        )

    def _print_of(self, method: str) -> str:
        """Fingerprint of a recorded embedding."""
        fingerprint: str = self.store.beside[f"embedding/{method}"]["fingerprint"]
        return fingerprint

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
            Workers to compute on, as for :meth:`generate`.
        sample
            Number of random particles to compare on, never those that a method was trained with;
            None for all particles, once they are embedded exactly.
        seed
            Seed of the sample.

        Returns
        -------
        dict
            ``sample``, ``exact_seconds_a_particle`` and ``methods``: for each the figures of
            :func:`scapedist.analysis.agreement.agreement`, states changed, neighbours kept, the
            worst particles, and its cost.
        """
        with self.store.lock(), disk_errors(self.directory):
            embedder = self.embedder(workers)
            beside = self.store.beside
            base = [beside[n]["fingerprint"] for n in sorted(beside) if n.startswith("embedding/")]
            made = self.store.stages.get("states", {}).get("fingerprint")
            self._beside(
                "crosscheck",
                NoSettings(),
                embedder.fingerprint("crosscheck", base, made, sample, seed),
                lambda begin: methods.compare_methods(embedder, sample, seed),
            )
            results: dict[str, Any] = self.store.beside["crosscheck"]["results"]
            path, text = self.directory / "crosscheck.json", json.dumps(results, indent=1) + "\n"
            if not path.exists() or path.read_text() != text:
                write_text(path, text)
        return results

    def embed_latents(self, latents: np.ndarray) -> dict[str, np.ndarray]:
        """Coordinates of any latents by the run's reduced map.

        Parameters
        ----------
        latents : (n, zdim) float

        Returns
        -------
        dict
            ``coordinates`` (n, r) float32, ``residual`` (n,) and ``error`` (n,), ``nearest_volume``
            (n,) and ``distance`` (n,) to it, and where there are states ``state`` and ``margin``.
        """
        if "embedding/map" not in self.store.beside:
            raise RunError(
                f"New latents are embedded by the reduced map. {self.directory} has none that is "
                f"up to date. Give `scapedist embed {self.directory} --method reduced` first."
            )
        found = reduced.apply_map(self.embedder(None), latents)
        return found | place.place_rows(self.store, found["coordinates"], found["residual"])

    def grow(self, workers: Workers | None = None) -> int:
        """Add representatives of what the sketch missed, and do all stages with it anew.

        Volumes that are there are kept; embeddings and report are to be made again.

        Returns
        -------
        int
            Number of volumes added; 0 where nothing was missed.
        """
        if "missed" not in self.store.beside:
            raise RunError(
                f"A sketch grows by what an embedding finds missed. {self.directory} has none that "
                f"is up to date. Give `scapedist embed {self.directory}` first."
            )
        if FULL not in self.store or maps_of(self.store):
            raise RunError(
                "A sketch grows where whole volumes are stored and the model makes them. This "
                f"one of {self.directory} cannot. Make a larger sketch in another --output."
            )
        old = from_record(SketchSettings, self.store.last_settings("sketch"))
        fresh = np.setdiff1d(self.store.read("missed/representative"),
                             self.store.read("sketch/particle"))  # fmt: skip
        if not len(fresh):
            return 0
        entries = volumes.stored_entries(self.store, FULL)
        added = (*old.added, *fresh.tolist())
        self.sketch(added=added)
        with self.store.lock():
            n = self.store.array("sketch/particle").shape[0]
            array = self.store.array(FULL)
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
        from scapedist.report.report import write_report  # plotly is slow to load

        settings = self._settings("report", options)

        def body(begin: Begin) -> dict[str, Any]:
            begin()
            umap = umap_by(or_here(workers)) if settings.umap else None
            write_report(self.store.group, self.directory, umap)
            return {}

        inputs = {name: record["fingerprint"] for name, record in self.store.beside.items()}
        self._stage("report", settings, inputs, body)
        return self.directory / "report.html"
