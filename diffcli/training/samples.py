"""What one training run reads: the source, the target domains, and the batches in the order of the draws."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from diffcli.config.domain import MiniworldDomain
from diffcli.config.settings import RunConfig
from diffcli.data.batches import Batch, training_batches
from diffcli.data.dataset import Domain, TrainingSet, open_domain
from diffcli.data.glance import empty_classes, glance
from diffcli.data.headers import check_headers
from diffcli.data.skipped import Skipped
from diffcli.data.statistics import ClassStatistics, class_statistics, kept_statistics
from diffcli.errors import DataError, DiffError
from diffcli.runtime import console, distributed
from diffcli.runtime.device import resolve_data_workers
from diffcli.runtime.words import counted
from diffcli.training.trainer import Trainer


def open_domains(config: RunConfig) -> tuple[Domain, list[Domain]]:
    """List the source and every target before anything heavy is loaded.

    Raises:
        DataError: a domain is missing or incomplete, or the processes see different samples.
    """
    classes = config.model.classes
    source = open_domain(config.data.train, purpose="train", classes=classes)
    settings = config.data.train
    if not isinstance(settings, MiniworldDomain) and settings.val_fraction is not None:
        console.say(
            f"{source.name}: val_fraction {settings.val_fraction:g} by seed {settings.val_seed} leaves "
            f"{counted(len(source), 'sample')} to train"
        )
    targets = [open_domain(entry, purpose="eval", classes=classes) for entry in config.data.eval]
    distributed.require_same([domain.samples for domain in (source, *targets)], what="samples")
    return source, targets


@dataclass
class Checked:
    """What is known of the source before training."""

    statistics: ClassStatistics | None
    """Pixels of each class in each sample, where rare class sampling or class balance needs them."""
    skipped: Skipped
    """Samples that cannot be used."""


def check_samples(config: RunConfig, source: Domain, targets: Sequence[Domain]) -> Checked:
    """Read the headers of all images, a handful of labels and, where they are needed, all labels; report what is wrong.

    Raises:
        DataError: labels hold values outside the mapping, or more samples are bad than `data.on_error` allows.
    """
    skipped = Skipped(source.name, len(source))
    for domain in (source, *targets):
        faults = list(_headers(config, domain).values())
        if domain is source:
            _report_bad(config, skipped, faults)
        elif faults:
            console.warn(
                f"{domain.name}: {len(faults)} of {counted(len(domain), 'sample')} cannot be scored, the first: "
                f"{faults[0].where}: {faults[0].message}"
            )
    found = glance(source)
    if len(found.outside) > 1 or len(found.outside) == found.samples > 0:
        raise found.errors[-1]
    statistics = _count_classes(config, source, skipped)
    empty = empty_classes(source, found, statistics)
    if empty:
        console.warn(empty)
    return Checked(statistics, skipped)


def _headers(config: RunConfig, domain: Domain) -> dict[int, DataError]:
    if all(sample.image is None for sample in domain.samples):
        return {}
    with console.progress(f"check the files of {domain.name}", len(domain)) as bar:
        return check_headers(
            domain,
            workers=resolve_data_workers(config.runtime.data_workers),
            progress=lambda _done, _total: bar.update(),
            cached=bar.cached,
        )


def _report_bad(config: RunConfig, skipped: Skipped, faults: Sequence[DiffError]) -> None:
    """Report samples that are newly found to be bad, a line each.

    Raises:
        DiffError: data.on_error is stop, or too many are bad.
    """
    if faults and config.data.on_error == "stop":
        raise faults[0]
    for fault in skipped.add(faults):
        console.warn(f"{fault.where}: {fault.message}; other samples are drawn in its place")


def _count_classes(config: RunConfig, source: Domain, skipped: Skipped) -> ClassStatistics | None:
    """Class pixels of the source; cached between runs."""
    if config.train.rare_class_sampling is None and not config.train.loss.class_balance:
        return None
    faults: dict[int, DataError] = {}
    with console.progress("count classes", len(source)) as bar:
        if (kept := kept_statistics(source)) is not None:
            bar.cached()
            return kept
        statistics = class_statistics(
            source,
            workers=resolve_data_workers(config.runtime.data_workers),
            progress=lambda _done, _total: bar.update(),
            faults=faults,
        )
    _report_bad(config, skipped, [faults[i] for i in sorted(faults)])
    return statistics


def training_set(config: RunConfig, source: Domain, statistics: ClassStatistics | None) -> TrainingSet:
    """The source's samples as they are drawn and augmented.

    Raises:
        DataError: rare class sampling finds no image that holds enough of any class.
    """
    samples = TrainingSet(
        source,
        augmentation=config.augmentation,
        rare_classes=config.train.rare_class_sampling,
        statistics=statistics,
        seed=config.train.seed,
    )
    if samples.rare is not None and samples.rare.left_out:
        names = ", ".join(config.model.classes[train_id] for train_id in samples.rare.left_out)
        console.say(f"rare class sampling leaves out classes that no image holds enough of: {names}")
    return samples


def batches(trainer: Trainer) -> Generator[Batch, None, None]:
    """This process's micro-batches from the current iteration to the last.

    A sample depends on the number of its draw alone, so that a resumed run sees what an uninterrupted one sees.
    """
    train, accelerator = trainer.config.train, trainer.accelerator
    steps = range(
        trainer.iteration * train.gradient_accumulation, train.iterations * train.gradient_accumulation
    )
    first = [
        (step * accelerator.num_processes + accelerator.process_index) * train.batch_size for step in steps
    ]
    return drawn(
        trainer.config,
        trainer.samples,
        draws=[start + i for start in first for i in range(train.batch_size)],
        pin=trainer.model.device.type == "cuda",
    )


def drawn(
    config: RunConfig, samples: TrainingSet, *, draws: Sequence[int], pin: bool = False
) -> Generator[Batch, None, None]:
    """The numbered draws of a training in its batches, loaded as the settings say.

    Raises:
        DiffError: see `training_batches`.
    """
    return training_batches(
        samples,
        draws=draws,
        batch_size=config.train.batch_size,
        workers=resolve_data_workers(config.runtime.data_workers),
        pin=pin,
        skip=config.data.on_error == "skip",
    )


def note_faults(trainer: Trainer, faults: Sequence[DiffError]) -> None:
    """Note the bad samples that this process and the others met in one batch each, and report new ones once.

    Every process calls it, and holds the same list afterwards.

    Raises:
        DataError: more samples are bad than are tolerated; in every process.
    """
    if distributed.all_reduce([len(faults)])[0]:  # a number is cheaper to exchange than objects
        every = [fault for met in distributed.all_gather(lambda: faults) for fault in met]
        trainer.skipped.draws += len(every)
        _report_bad(trainer.config, trainer.skipped, every)
