"""Which old-task quantity an importance matrix preserves, measured at every boundary or from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from cl_diffusion.callbacks.diagnostics.audit_bands import audited_bands
from cl_diffusion.callbacks.diagnostics.audit_measurements import AuditMeasurements
from cl_diffusion.callbacks.diagnostics.audit_pictures import draw_audit
from cl_diffusion.callbacks.diagnostics.audit_record import AuditRecord, described
from cl_diffusion.callbacks.diagnostics.audit_sources import FEWEST, AuditSources, task_batches
from cl_diffusion.callbacks.diagnostics.audited_checkpoint import displacement, learned, progress
from cl_diffusion.callbacks.diagnostics.audited_task import AuditedTask, determined_of
from cl_diffusion.callbacks.diagnostics.logged_pictures import log_files
from cl_diffusion.callbacks.regularization.preconditions import refuse_sharded
from cl_diffusion.callbacks.regularization.unrecorded import unrecorded
from cl_diffusion.callbacks.task import TaskCallback, task_stream
from cl_diffusion.diffusion import SNRBands
from cl_diffusion.fisher.probe import placed
from cl_diffusion.linalg import parameters
from cl_diffusion.metrics.gradient_audit import KINDS, OTHER, RELABELLED
from cl_diffusion.phases import phase
from cl_diffusion.processes import world_size
from cl_diffusion.progress import track


class FisherAudit(TaskCallback):
    """What a Fisher of the task just learned is, and what it holds: ``audit.json`` and its pictures, after every task.

    In each band of the signal-to-noise ratio, and over all timesteps, at one and the same model:

    - the shape of the empirical Fisher, of the true one and of the output-normalised one; whose direction the leading
      eigenvector and the mean gradient have: their own on other samples, another task's, that task's images under this
      task's labels, pure noise's; what a linear denoiser explains of it (``GradientAudit``);
    - steps along those directions, random ones and single coordinates: what each matrix predicts of losses and outputs,
      and what happens (``Preservation``), on draws that the directions have not seen;
    - once the next task is learned: how much of the damage to this one lies along its directions (``Damage``), by what
      its parameters have moved: buffers are those of this task's end;
    - a verdict in words, by stated rules, never more certain than the intervals (``verdict``).

    Training is bit for bit the same with and without it. Nothing of size P x P is formed: gradients are held as
    ``memory_budget`` allows, and about twenty vectors of P entries. In a project without tasks or timesteps, what needs
    neither is measured. Several processes share the samples.

    From a checkpoint: ``cl-diffusion test -c configs/diagnostics/audit.yaml --ckpt_path ...``.

    Args:
        bands: None is thirds of the timesteps where the module's ``draw`` takes a ``band`` and it says its
            ``noise_schedule``, else there are none.
        timesteps: in place of bands, single timesteps of the module's ``noise_schedule``.
        samples: of each task, at random; the same in each band, with other draws. Cost grows with their square.
        other: the task compared with is so many further on in the stream, round from the last to the first.
        kinds: what is compared, of ``cl_diffusion.metrics.gradient_audit.KINDS``; fewer cost less.
        radii: of the steps, as shares of the length of all parameters together; none leaves the steps out, and what of
            the damage the derivatives predict: a module without forward-mode derivatives needs that.
        random: so many random directions and as many coordinates among those probed.
        tau: of the output normalisation.
        memory_budget: bytes of gradients held at once.
        repeats: half samples that an interval is taken from.
        seed: of draws, random directions and half samples.
        task: for a checkpoint, which task it has just learned, from 1; None is what its epoch says.
        later: for a checkpoint, that of a model trained further, whose damage to the audited task is measured. Within
            a fit it is the task before that an audit has the damage to.
        epochs_per_task: the clock of a project whose data module knows nothing of tasks (see ``TaskCallback``).
        name: of the folder within the run; two audits in one Trainer need two names.

    Raises:
        ValueError: an argument is out of range; in ``setup``: bands of a module whose ``draw`` takes none, or that hold
            none of its timesteps; an ``other`` that is the task itself; a checkpoint under ``inference_mode``, or no
            stream to take a task from; what is of a checkpoint, in a fit. Of a checkpoint: there is an audit of it by
            this name, or ``later`` has its very weights or another model's. On the first batch: what the audit would
            fail on at the boundary.
    """

    boundary_phase = "audit"

    def __init__(
        self,
        bands: SNRBands | None = None,
        timesteps: Sequence[int] | None = None,
        samples: int = 128,
        other: int = 1,
        kinds: Collection[str] = tuple(KINDS),
        radii: Sequence[float] = (0.001, 0.01, 0.03),
        random: int = 4,
        tau: float = 1e-3,
        memory_budget: int = 2**31,
        repeats: int = 40,
        seed: int = 0,
        task: int | None = None,
        later: str | None = None,
        epochs_per_task: int | None = None,
        name: str = "audit",
    ) -> None:
        super().__init__(epochs_per_task)
        for argument, value, least in (("samples", samples, 16), ("random", random, 0), ("repeats", repeats, 2)):
            if value < least:
                raise ValueError(f"{argument}={value!r}; expected at least {least}")
        if not all(radius > 0 for radius in radii):
            raise ValueError(f"radii={list(radii)!r}; expected positive shares of the length of the parameters")
        if unknown := set(kinds) - set(KINDS):
            raise ValueError(f"kinds={list(kinds)!r}: {sorted(unknown)[0]!r} is none of {', '.join(KINDS)}")
        if other == 0:
            raise ValueError("other=0 is the task itself; expected the number of tasks to another, or kinds without it")
        if bands is not None and timesteps is not None:
            raise ValueError("bands and timesteps are both given; leave one of them out")
        if not tau > 0:
            raise ValueError(f"tau={tau!r}; expected a number > 0")
        if name in ("", "..") or Path(name).name != name:
            raise ValueError(f"name={name!r}; expected the name of a folder within the run")
        if later is not None and not Path(later).is_file():
            raise ValueError(f"later={later!r} is not a file; give a checkpoint of the model trained further")
        self.bands = bands
        self.timesteps = None if timesteps is None else tuple(timesteps)
        self.samples = samples
        self.other = other
        self.kinds = tuple(kinds)
        self.task = task
        self.later = later
        self.name = name
        self.settings: dict[str, Any] = {
            "radii": tuple(radii),
            "random": random,
            "tau": tau,
            "memory_budget": memory_budget,
            "repeats": repeats,
            "seed": seed,
        }
        self._kept: AuditedTask | None = None
        self._tried = False

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        refuse_sharded(trainer, type(self).__name__)
        self._tried = False
        audited_bands(pl_module, self.bands, self.timesteps)
        stream = task_stream(trainer)
        tasks = 1 if stream is None else stream.num_tasks
        if tasks > 1 and self.other % tasks == 0 and {OTHER, RELABELLED} & set(self.kinds):
            raise ValueError(
                f"other={self.other}: so many tasks further on, round a stream of {tasks}, is the task itself; give "
                "another number, or kinds without 'other' and 'relabelled'"
            )
        if stage != "test":
            for argument, value in (("task", self.task), ("later", self.later)):
                if stage == "fit" and value is not None:
                    raise ValueError(
                        f"{argument}={value!r} is of a checkpoint that is tested; leave it out where a model is trained"
                    )
            return
        if stream is None:
            raise ValueError("a checkpoint is audited on the samples of a TaskStream, and the data module is none")
        if trainer.test_loop.inference_mode:
            raise ValueError(
                "derivatives are silently wrong in inference mode; give Trainer(inference_mode=False), as "
                "configs/diagnostics/audit.yaml does"
            )

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._tried or self._running is None:
            return
        self._tried = True
        stream = task_stream(trainer)

        def few(task: int) -> Iterable[Any]:
            return [batch] if stream is None else islice(task_batches(trainer, task), 1)

        with phase(trainer, self.boundary_phase), unrecorded(trainer, pl_module, weights=True):
            first = self._subject(trainer, pl_module, self._running, samples=2, batches=few)
            first.try_out(steps=bool(self.settings["radii"]))

    @override
    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        at = {"epoch": trainer.current_epoch, "global_step": trainer.global_step, "weights": "raw"}
        with unrecorded(trainer, pl_module, weights=True):
            found = self._audit(trainer, pl_module, task, at)
        if found is not None:
            self._publish(trainer, found, task)

    def _audit(self, trainer: Trainer, module: LightningModule, task: int, at: dict[str, Any]) -> AuditRecord | None:
        """Of the current weights, and of what has become of the task before."""
        kept, self._kept = self._kept, None
        subject, measurements = self._subject(trainer, module, task), self._measurements(trainer)
        if len(subject.own) < FEWEST:
            rank_zero_warn(f"task {task + 1} has {len(subject.own)} samples, and an audit needs {FEWEST}: it has none")
            return None
        record, directions = measurements.audit(subject, self._provenance(module, subject, at))
        if task_stream(trainer) is None:  # the task's samples will be gone by the next boundary
            return record
        if kept is not None and (before := kept.before(module)) is not None:
            now = parameters.trainable_parameters(module)
            moved = {name: now[name].detach() - weight for name, weight in before.items()}
            old = self._subject(trainer, module, kept.task)
            with placed(module, {**before, **kept.buffers}):
                record.damage = measurements.damage(old, moved, kept.directions)
            record.determined = kept.determined
            record.provenance["damage"] = {"task": kept.task + 1, "later": f"after task {task + 1}"}
        self._kept = AuditedTask.of(module, task, record, directions)
        return record

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        at, stream = progress(trainer), task_stream(trainer)
        assert stream is not None  # refused in setup
        task = learned(stream, self.task, at)
        if (before := self._folder(trainer, task) / "audit.json").exists():
            raise ValueError(f"{before} is there already; give the callback another `name`, or move that audit away")
        with unrecorded(trainer, pl_module, weights=True):
            moved = None if self.later is None else displacement(pl_module, self.later, at)
            measurements, subject = self._measurements(trainer), self._subject(trainer, pl_module, task)
            subject.try_out(steps=bool(self.settings["radii"]))
            record, directions = measurements.audit(subject, self._provenance(pl_module, subject, at))
            if moved is not None:
                record.damage = measurements.damage(subject, moved, directions)
                record.determined = determined_of(record, directions)
                record.provenance["damage"] = {"task": task + 1, "later": self.later}
        self._publish(trainer, record, task)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "kept": None if self._kept is None else self._kept.state()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._kept = None if state_dict["kept"] is None else AuditedTask(**state_dict["kept"])

    def _folder(self, trainer: Trainer, task: int) -> Path:
        """Of a task's audit; a broadcast, so that every process takes part."""
        return Path(trainer.log_dir or trainer.default_root_dir) / self.name / f"after_task_{task + 1}"

    def _publish(self, trainer: Trainer, record: AuditRecord, task: int) -> None:
        folder = self._folder(trainer, task)
        if not trainer.is_global_zero:
            return
        record.write(folder)
        draw_audit(record, folder)
        log_files(trainer, folder, self.name)
        rank_zero_info("\n".join([f"audit of task {task + 1}, in {folder}:", *record.verdict]))

    def _measurements(self, trainer: Trainer) -> AuditMeasurements:
        return AuditMeasurements(**self.settings, track=lambda items, label: track(trainer, items, label))

    def _subject(
        self,
        trainer: Trainer,
        module: LightningModule,
        task: int,
        samples: int | None = None,
        batches: Callable[[int], Iterable[Any]] | None = None,
    ) -> AuditSources:
        stream = task_stream(trainer)
        other = task if stream is None else (task + self.other) % stream.num_tasks
        compared = None if other == task else other
        bands, seed = audited_bands(module, self.bands, self.timesteps), self.settings["seed"]
        number = samples or self.samples
        return AuditSources(trainer, module, task, compared, bands, number, seed, self.kinds, batches)

    def _provenance(self, module: LightningModule, subject: AuditSources, at: dict[str, Any]) -> dict[str, Any]:
        for number, there in ((subject.task, subject.own), (subject.compared, subject.other)):
            if there is not None and number is not None and len(there) < self.samples:
                rank_zero_warn(f"task {number + 1} has {len(there)} samples, fewer than samples={self.samples}")
        settings = {name: value for name, value in self.settings.items() if name != "memory_budget"}
        of = subject.describe()
        if set(self.kinds) != set(KINDS) and (missing := sorted(set(self.kinds) - set(of["kinds"]))):
            rank_zero_warn(
                f"kinds={list(self.kinds)}: {', '.join(missing)} is not to be had of {type(module).__name__}"
            )
        return {**of, **settings, **described(module), **at, "processes": world_size()}
