"""Which domains the best checkpoint is chosen on, and which a training run has seen."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffcli.config.domain import MINIWORLD, DomainConfig, FolderDomain, MiniworldDomain
from diffcli.config.settings import RunConfig
from diffcli.data.dataset import Domain, find_splits
from diffcli.data.domains import MINIWORLD_SOURCE
from diffcli.data.overlap import shared_samples
from diffcli.errors import ConfigError, DiffError


@dataclass(frozen=True)
class Selection:
    """What the scores of each target domain count for; domains by their names in reports."""

    domains: tuple[str, ...] = ()
    """The best checkpoint has the highest mean IoU over these; with none, the last checkpoint is the best."""
    held_out: bool = False
    """They are the source's held-out part, and not the target domains."""
    seen: frozenset[str] = frozenset()
    """Domains that are no test of generalisation: parts of the source, or with files of the training set."""
    shared: dict[str, int] = field(default_factory=dict)
    """Domain -> samples whose files are in the training set as well."""

    def describe(self) -> str:
        """Where the best checkpoint is chosen, in words."""
        if not self.domains:
            return "the last one: there is no domain to choose it on"
        names = ", ".join(self.domains)
        if self.held_out:
            return f"chosen on the held-out part of the source ({names})"
        return f"chosen on the target domains ({names}), which are then not strictly unseen"

    def overlaps(self) -> list[str]:
        """A line for each domain that has files in common with the training set."""
        return [
            f"{name}: {count} of its images are in the training set: it counts neither as unseen nor for the best "
            "checkpoint"
            for name, count in self.shared.items()
        ]


def with_held_out(config: RunConfig) -> RunConfig:
    """The settings with the source's held-out part among data.eval, where the best checkpoint is chosen on it.

    Nothing is added where there is one validation only, so that there is nothing to choose.

    Raises:
        ConfigError: train.select_on is source, and the source has no held-out part.
    """
    train, source = config.train, config.data.train
    chosen_once = train.validate_interval is None or train.validate_interval >= train.iterations
    if (
        train.select_on == "targets"
        or chosen_once
        or any(is_part(entry, source) for entry in config.data.eval)
    ):
        return config
    if not _has_held_out(config):
        if train.select_on == "source":
            raise ConfigError(
                "train.select_on is source, but the source has no held-out part",
                hint="set val_fraction: 0.1 in data.train, or add its val split to data.eval",
            )
        return config
    name = f"{_name(source)} (held out)"
    held_out = source.model_copy(update={"name": name, "split": "val", "resize": None, "limit": None})
    data = config.data.model_copy(update={"eval": (*config.data.eval, held_out)})
    return config.model_copy(update={"data": data})


def select(config: RunConfig, source: Domain, targets: Sequence[Domain]) -> Selection:
    """What each target counts for, by its files and `train.select_on`."""
    pairs = list(zip(config.data.eval, targets, strict=True))
    shared = {target.name: len(shared_samples(source, target)) for target in targets}
    shared = {name: count for name, count in shared.items() if count}
    parts = {target.name for entry, target in pairs if is_part(entry, config.data.train)}
    held_out = [target.name for target in targets if target.name in parts and target.name not in shared]
    others = [target.name for target in targets if target.name not in parts and target.name not in shared]
    on_source = config.train.select_on != "targets" and bool(held_out)
    return Selection(
        domains=tuple(held_out if on_source else others),
        held_out=on_source,
        seen=frozenset({*parts, *shared}),
        shared=shared,
    )


def is_part(entry: DomainConfig, source: DomainConfig) -> bool:
    """Whether an evaluation entry is (a part of) the source: the same folder, or one domain within the other."""
    if isinstance(entry, FolderDomain) and isinstance(source, FolderDomain):
        return (_root(entry), entry.images) == (_root(source), source.images)
    if isinstance(source, MiniworldDomain):
        return entry.domain == (MINIWORLD_SOURCE if source.domain == MINIWORLD else source.domain)
    one, other = f"{entry.domain}/", f"{source.domain}/"
    return (one.startswith(other) or other.startswith(one)) and _root(entry) == _root(source)


def _name(config: DomainConfig) -> str:
    """The name that the domain has in reports."""
    if config.name is None and isinstance(config, FolderDomain) and config.root is not None:
        return config.root.resolve().name
    return config.name or config.domain


def _root(config: DomainConfig) -> Path | None:
    return None if config.root is None else config.root.expanduser().resolve()


def _has_held_out(config: RunConfig) -> bool:
    """Whether the source has a val split on disk, or val_fraction makes one."""
    source = config.data.train
    if isinstance(source, MiniworldDomain):
        return False
    try:
        there = find_splits(source.model_copy(update={"split": None}), classes=config.model.classes)
    except DiffError:
        return False  # what is wrong is reported where the source is opened
    return "val" in there
