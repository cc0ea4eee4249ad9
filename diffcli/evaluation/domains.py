"""Which domains a run is evaluated on, and how their classes and the run's were matched."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from diffcli.config.domain import FOLDER, DomainConfig
from diffcli.config.settings import DataConfig
from diffcli.data.roots import expand_domains, known_domain, label_classes
from diffcli.errors import ConfigError
from diffcli.runs.opening import OpenRun


@dataclass(frozen=True, kw_only=True)
class DomainChoice:
    """The domains that a command is asked for."""

    names: str | None = None
    """A name, "all" or a comma list; None takes every domain of `data`, or of the run's data.eval."""
    root: Path | None = None
    """Folder that holds the named domains, or the named domain's folder; None takes DIFFCLI_DATA."""
    data: DataConfig | None = None
    """The data part of a YAML file, whose data.eval replaces the run's."""
    split: str | None = None
    """Split of every domain; None takes each one's."""
    limit: int | None = None
    """At most this many samples of each domain, evenly spread; None takes each one's."""


def wanted_domains(
    trained: OpenRun, choice: DomainChoice, *, otherwise: Sequence[DomainConfig] = ()
) -> list[DomainConfig]:
    """What to evaluate on: a name of the run's (or the file's) data.eval means that entry, any other a known domain.

    Args:
        otherwise: entries for a run without data.eval, such as an exported folder.

    Raises:
        ConfigError: no domain is named, an unknown one is, or the options contradict each other.
    """
    if choice.data is not None and choice.root is not None:
        raise ConfigError("--config and --root do not go together", hint="write root: into the file")
    if choice.data is not None and not choice.data.eval:
        raise ConfigError("data.eval of this file is empty", hint="name the domains to evaluate on there")
    known = choice.data.eval if choice.data is not None else trained.config.data.eval or otherwise
    changes = {"split": choice.split, "limit": choice.limit}
    changes = {name: value for name, value in changes.items() if value is not None}
    return [entry.model_copy(update=changes) for entry in _chosen(trained, choice, known)]


def _chosen(trained: OpenRun, choice: DomainChoice, known: Sequence[DomainConfig]) -> list[DomainConfig]:
    """The entries that the names mean."""
    if choice.names is None:
        if not known:
            raise ConfigError(
                "no domain is named", where=str(trained.path), hint="--domain NAME, or --domain all"
            )
        return list(known)
    if choice.root is not None:
        return expand_domains(choice.names, root=choice.root)
    entries: list[DomainConfig] = []
    for name in (part.strip() for part in choice.names.split(",")):
        meant = [entry for entry in known if name in (entry.name, entry.domain)]
        entries += meant or expand_domains(name)
    return list({entry.model_dump_json(): entry for entry in entries}.values())


class ClassMatch(BaseModel):
    """How a run's classes and those of a known domain were matched by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    matched: tuple[str, ...]
    only_in_run: tuple[str, ...]
    """They do not exist in the domain's labels: predictions of them are always wrong."""
    only_in_domain: tuple[str, ...]
    """Their pixels are not scored."""

    def __str__(self) -> str:
        """One sentence for people."""
        parts = [f"classes matched by name: {', '.join(self.matched)}"]
        if self.only_in_run:
            parts.append(
                f"not in this domain, so always wrong where predicted: {', '.join(self.only_in_run)}"
            )
        if self.only_in_domain:
            parts.append(f"not known to the run, so not scored: {', '.join(self.only_in_domain)}")
        return "; ".join(parts)


def match_classes(entry: DomainConfig, classes: Sequence[str]) -> ClassMatch | None:
    """The match of a run's classes with a known domain's; None where they are the same, and for a custom folder."""
    if entry.domain == FOLDER:
        return None
    names = label_classes(known_domain(entry.domain), classes)
    if set(classes) == set(names):
        return None
    return ClassMatch(
        matched=tuple(name for name in classes if name in names),
        only_in_run=tuple(name for name in classes if name not in names),
        only_in_domain=tuple(name for name in names if name not in classes),
    )
