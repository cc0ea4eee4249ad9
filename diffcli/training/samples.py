"""What one training run reads: the source, the target domains, and the batches in the order of the draws."""

from collections.abc import Iterator

from diffcli.config.settings import RunConfig
from diffcli.data.batches import Batch, training_batches
from diffcli.data.dataset import Domain, TrainingSet, open_domain
from diffcli.data.statistics import ClassStatistics, class_statistics
from diffcli.runtime import console, distributed
from diffcli.training.trainer import Trainer


def open_domains(config: RunConfig) -> tuple[Domain, list[Domain]]:
    """List the source and every target before anything heavy is loaded.

    Raises:
        DataError: a domain is missing or incomplete, or the processes see different samples.
    """
    classes = config.model.classes
    source = open_domain(config.data.train, purpose="train", classes=classes)
    targets = [open_domain(entry, purpose="eval", classes=classes) for entry in config.data.eval]
    distributed.require_same([domain.samples for domain in (source, *targets)], what="samples")
    return source, targets


def count_classes(config: RunConfig, source: Domain) -> ClassStatistics | None:
    """Class pixels of the source, where rare class sampling or class balance needs them; cached between runs.

    Raises:
        DataError: a label is missing, damaged or holds values outside the mapping.
    """
    if config.train.rare_class_sampling is None and not config.train.loss.class_balance:
        return None
    with console.progress("count classes", len(source)) as bar:
        return class_statistics(
            source, workers=config.runtime.data_workers, progress=lambda _done, _total: bar.update()
        )


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


def batches(trainer: Trainer) -> Iterator[Batch]:
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
    return training_batches(
        trainer.samples,
        draws=[start + i for start in first for i in range(train.batch_size)],
        batch_size=train.batch_size,
        workers=trainer.config.runtime.data_workers,
        pin=trainer.model.device.type == "cuda",
    )
