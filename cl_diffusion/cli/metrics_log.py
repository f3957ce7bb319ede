"""``metrics.csv`` of a run, continued when the run is resumed."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from typing_extensions import override


class MetricsLog(CSVLogger):
    """A CSV logger whose folder is the run's own, and which appends to the rows that are there.

    Lightning's own deletes the file of an earlier run. Rows logged after the checkpoint that is resumed stay: a step
    that was trained twice is there twice.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(save_dir=str(folder), name="", version="")

    @property
    @override
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _ContinuedWriter(self.log_dir)
        return self._experiment


class _ContinuedWriter(ExperimentWriter):
    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    @override
    def _check_log_dir_exists(self) -> None:
        """Keep what is there."""
