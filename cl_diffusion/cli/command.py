"""``fit``, ``validate``, ``test`` and ``predict`` over a stream of tasks, and ``report``."""

from __future__ import annotations

import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import rich
import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.table import Table
from typing_extensions import override

from cl_diffusion.cli import report_command
from cl_diffusion.cli.checkpoint_config import configuration_of, without_replaced
from cl_diffusion.cli.metrics_log import MetricsLog
from cl_diffusion.cli.prediction_writer import PredictionWriter
from cl_diffusion.cli.run_folder import RunFolder, checkpoint_to_resume, claim, run_of_checkpoint

DESCRIPTIONS = {
    "fit": "Train on a stream of tasks, one after the other, and measure after each what is left of all.",
    "validate": "Losses of a checkpoint on each task's held-out images.",
    "test": "The same, with what audits are appended (configs/diagnostics).",
    "predict": "Images from a checkpoint, as a picture and as tensors.",
}


class ContinualCLI(LightningCLI):
    """LightningCLI for a stream of tasks in one named run folder.

    - ``max_epochs`` is the stream's number of epochs, ``reload_dataloaders_every_n_epochs`` is 1;
    - ``--run`` is the folder of a ``fit``: configuration, ``metrics.csv``, ``continual.csv``, samples, checkpoints. A
      folder that holds anything is refused unless the fit resumes from its newest checkpoint with its configuration;
      ``--ckpt_path last`` is that checkpoint, and the start where there is none yet;
    - ``validate``, ``test`` and ``predict`` need nothing but ``--ckpt_path``: the checkpoint's hyper-parameters are
      read as the first configuration, so that what is given besides it wins.
    """

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run",
            type=str,
            default="runs/default",
            help="The folder of this run. New, or an earlier run that is resumed by --ckpt_path.",
        )
        parser.set_defaults({"trainer.reload_dataloaders_every_n_epochs": 1})

    @override
    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Lightning's own, each in our words, and ``report``, which ``main`` runs without a Trainer."""
        self._subcommand_parsers = {}
        subcommands = parser.add_subcommands()
        for name, description in DESCRIPTIONS.items():
            ours = {"description": description, "usage": _usage(name)}
            of = self._prepare_subcommand_parser(Trainer, name, **{**ours, **kwargs.get(name, {})})
            self._subcommand_parsers[name] = of
            subcommands.add_subcommand(name, of, help=description)
        subcommands.add_subcommand(report_command.NAME, report_command.report_parser(), help=report_command.DESCRIPTION)

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        given = sys.argv[1:] if args is None else args
        self._arguments = given if isinstance(given, list) else []
        if isinstance(given, list):
            if any(argument.startswith("--print_completion") for argument in given):
                self._complete_strategies_by_name()
            self.config = parser.parse_args(_with_checkpoint(given))
        else:
            super().parse_arguments(parser, given)

    def _complete_strategies_by_name(self) -> None:
        """Not by the arguments of their classes, which lead through torch's meshes into a script of 78 MB."""
        for parser in self._subcommand_parsers.values():
            parser._option_string_actions["--trainer.strategy"].choices = StrategyRegistry.available_strategies()

    @override
    def _parse_ckpt_path(self) -> None:
        """Nothing: ``parse_arguments`` has read the checkpoint first, so that the user's configuration wins."""

    @override
    def before_instantiate_classes(self) -> None:
        torch.set_float32_matmul_precision("high")
        self.config[self.subcommand]["weights_only"] = True  # no pickle is read from a checkpoint
        if self.subcommand in ("validate", "test"):
            self.config[self.subcommand]["verbose"] = False  # Lightning's table has a column a loader; see below
        # None concerns the user: Lightning on a newer torch, DDPM's `configure_model`, which shards where it is asked,
        # and callbacks that only a fit needs.
        warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)")
        warnings.filterwarnings("ignore", message=".*WeightAveraging callback with a model that overrides")
        if self.subcommand != "fit":
            warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint")
        if self.subcommand == "fit":
            given = self._checkpoint
            checkpoint = self.config[self.subcommand]["ckpt_path"] = checkpoint_to_resume(self._run, given)
            if not self._get(self.config, "trainer").fast_dev_run:
                rank_zero_only(claim)(self._run, self._fit_configuration(), checkpoint, given)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = self._get(self.config_init, "trainer")
        kwargs["default_root_dir"] = str(self._run)
        kwargs["logger"] = self._loggers(trainer["logger"])
        if self.subcommand == "fit":
            kwargs["max_epochs"] = self._max_epochs(trainer["max_epochs"])
        self.save_config_kwargs = {
            "configuration": self._fit_configuration(),
            "folder": self._run,
            "arguments": self._arguments,
        }
        built = super().instantiate_trainer(**kwargs)
        if self.subcommand == "predict":
            built.callbacks.append(PredictionWriter(self._run))  # type: ignore[attr-defined]
        return built

    def after_validate(self) -> None:
        """Print what was measured."""
        self._print_figures()

    def after_test(self) -> None:
        """Print what was measured."""
        self._print_figures()

    def _print_figures(self) -> None:
        table = Table("metric", "value")
        for name, value in self.trainer.callback_metrics.items():
            table.add_row(name, f"{value:.4f}")
        if self.trainer.is_global_zero:
            rich.get_console().print(table)

    @property
    def _checkpoint(self) -> str | None:
        path = self._get(self.config, "ckpt_path")
        return None if path is None else str(path)

    @property
    def _run(self) -> Path:
        """The named folder; for other subcommands than ``fit``, the run that the checkpoint belongs to."""
        if self.subcommand == "fit" or self._checkpoint is None:
            return Path(self._get(self.config, "run"))
        return run_of_checkpoint(self._checkpoint)

    def _max_epochs(self, given: int | None) -> int | None:
        """The stream's; a data module that is not a stream, or a Trainer that contradicts it, has its own say."""
        epochs = getattr(self.datamodule, "num_epochs", None)
        return epochs if given is None else given

    def _loggers(self, given: Any) -> list[Logger] | bool:
        """``metrics.csv`` in the run folder while fitting, then whatever was asked for; ``logger: false`` is none."""
        if given is False:
            return False
        named = [] if given in (None, True) else given if isinstance(given, list) else [given]
        return [MetricsLog(self._run), *named] if self.subcommand == "fit" else named or False

    def _fit_configuration(self) -> str:
        """The parsed configuration as YAML, without what a resumed fit changes."""
        parser = self._parser(self.subcommand)
        config = self.config[self.subcommand].clone()
        for key in ("ckpt_path", "config"):
            config.pop(key, None)
        return str(parser.dump(config, skip_none=False, skip_validation=True))


def _usage(command: str) -> str:
    """In a line: there are hundreds of arguments."""
    given = "-c FILE [-c FILE ...]" if command == "fit" else "--ckpt_path FILE [-c FILE ...]"
    return f"cl-diffusion {command} {given} [--ARGUMENT VALUE ...]"


def _with_checkpoint(args: list[str]) -> list[str]:
    """The arguments, with the configuration of ``--ckpt_path`` as the first one where nothing trains."""
    if not args or args[0] not in ("validate", "test", "predict"):
        return args
    for position, argument in enumerate(args):
        name, _, value = argument.partition("=")
        if name == "--ckpt_path":
            path = value or (args[position + 1] if position + 1 < len(args) else "")
            return [args[0], "--config", without_replaced(configuration_of(path), args), *args[1:]]
    return args


def main(args: ArgsType = None) -> None:
    """Run the command line: of this process, or the given list of arguments."""
    given = sys.argv[1:] if args is None else args
    if isinstance(given, list) and given[:1] == [report_command.NAME]:
        report_command.report(given[1:])
        return
    set_parsing_settings(add_print_completion_argument=True)
    ContinualCLI(
        LightningModule,
        LightningDataModule,
        save_config_callback=RunFolder,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        parser_kwargs={
            "parser_mode": "yaml",
            "prog": "cl-diffusion",
            "description": "Continual learning of diffusion models; `cl-diffusion COMMAND --help` says more.",
        },
        args=args,
    )


def command_line() -> None:
    """The console command: ``main``, where an error that this package states ends as one message and exit code 2.

    A fit that a signal has ended is not finished: exit code ``128 + signal``. Anything else is a fault and keeps its
    traceback.
    """
    try:
        main()
    except SIGTERMException as stopped:
        sys.exit(stopped.code or 128 + signal.SIGTERM)
    except Exception as error:
        stated = _stated_by_this_package(error)
        if stated is None:
            raise
        sys.exit(_refuse(stated))


def _refuse(error: BaseException) -> int:
    print(f"cl-diffusion: error: {error}", file=sys.stderr)
    return 2


def _stated_by_this_package(error: BaseException | None) -> BaseException | None:
    """The first of an error and its causes that a ``raise`` of this package made, if any."""
    package = str(Path(__file__).parents[1])
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        statement = frames[-1].line or "" if frames else ""
        if frames and frames[-1].filename.startswith(package) and statement.startswith("raise "):
            return error
        error = error.__cause__ or error.__context__
    return None
