"""`diffcli.train` and `diffcli.evaluate`: two commands as functions for Python programs and notebooks.

Each builds the command's request and runs it: what is printed and written is what the command prints and writes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffcli.config.file import load_config, override, settings_of
from diffcli.config.settings import RunConfig
from diffcli.evaluation.report import Report
from diffcli.runs.folder import RUNS, choose_checkpoint, find_run

Config = str | Path | Mapping[str, Any] | RunConfig
"""A YAML file, or what one would hold."""


def train(
    config: Config,
    *,
    overrides: Sequence[str] = (),
    name: str | None = None,
    resume: bool = False,
    runs: str | Path = RUNS,
) -> Path:
    """`diff train CONFIG`: train on one domain, score the domains of data.eval, and return the run's folder.

    Args:
        config: a YAML file, or its settings as a mapping: {"data": {"train": "miniworld/clean"}, ...}.
        overrides: settings to change, as --set takes them: ["train.iterations=1000"].
        name: of the run's folder; None takes that of the settings, of the file, or "run".
        resume: continue the newest unfinished run of that name.
        runs: folder of all runs.

    Raises:
        DiffError: the settings, the data or the diffusion model are wrong or missing, or the training failed; says
            what is kept.
    """
    from diffcli.commands import train as command

    settings = _settings(config, overrides)
    if name is not None:
        settings = settings.model_copy(update={"name": name})
    stem = Path(config).stem if isinstance(config, str | Path) else "run"
    return command.run(
        command.Request(config=settings, config_name=stem, resume=resume, runs=Path(runs).expanduser())
    )


def evaluate(
    run: str | Path,
    *,
    domains: str | Sequence[str] | None = None,
    root: str | Path | None = None,
    config: Config | None = None,
    split: str | None = None,
    limit: int | None = None,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    checkpoint: str = "last",
    device: str | None = None,
) -> Report:
    """`diff eval --run RUN`: score a run on labelled domains, write its reports, and return them.

    Args:
        run: a run folder, a name under runs/, an exported folder, a checkpoint file, or hub:owner/name.
        domains: names, or "all"; None takes the run's data.eval.
        root: folder that holds the named domains, or the named domain's folder; None takes DIFFCLI_DATA.
        config: settings whose data.eval is taken instead of the run's.
        split: train, val or test of every domain; None takes each one's.
        limit: images of each domain at most; None takes all.
        overrides: settings to change, as --set takes them: ["eval.flip=true"].
        output: folder of the reports; None takes RUN/eval/<time>.
        checkpoint: "last", or "best", which was chosen by the run's validations.
        device: auto, cpu, cuda, cuda:1 or mps; None takes auto.

    Raises:
        DiffError: there is no such run or domain; or, after the others are scored and written, some images or domains
            could not be scored.
    """
    from diffcli.commands import evaluate as command
    from diffcli.evaluation.domains import DomainChoice

    names = domains if isinstance(domains, str) or domains is None else ",".join(domains)
    choice = DomainChoice(
        names=names,
        root=None if root is None else Path(root),
        data=None if config is None else _settings(config, ()).data,
        split=split,
        limit=limit,
    )
    request = command.Request(
        runs=[choose_checkpoint(find_run(str(run)), checkpoint)],
        domains=choice,
        overrides=overrides,
        output=None if output is None else Path(output),
        device=device,
    )
    [report] = command.run(request)
    return report


def _settings(config: Config, overrides: Sequence[str]) -> RunConfig:
    if isinstance(config, RunConfig):
        return override(config, overrides)
    if isinstance(config, Mapping):
        return settings_of(config, overrides=overrides)
    return load_config(Path(config), overrides=overrides)
