"""Which domains a run is evaluated on, and how their classes and the run's were matched."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from diffcli.classes import CITYSCAPES_CLASSES
from diffcli.config.domain import DomainConfig
from diffcli.data.roots import expand_domains
from diffcli.errors import ConfigError
from diffcli.runs.opening import OpenRun


def wanted_domains(
    trained: OpenRun, domains: str | None, root: Path | None, *, otherwise: Sequence[DomainConfig]
) -> list[DomainConfig]:
    """What to evaluate on: names of the run's own domains mean these, any other name the known domain."""
    own = trained.config.data.eval or otherwise
    if domains is None:
        if not own:
            raise ConfigError(
                "no domain is named", where=str(trained.path), hint="--domain NAME, or --domain all"
            )
        return list(own)
    if root is not None:
        return expand_domains(domains, root=root)
    entries: list[DomainConfig] = []
    for name in (part.strip() for part in domains.split(",")):
        meant = [entry for entry in own if name in (entry.name, entry.domain)]
        entries += meant or expand_domains(name)
    return list({entry.model_dump_json(): entry for entry in entries}.values())


class ClassMatch(BaseModel):
    """How a run's classes and those of a known domain, which has Cityscapes' classes, were matched by name."""

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
    if entry.domain == "folder" or set(classes) == set(CITYSCAPES_CLASSES):
        return None
    return ClassMatch(
        matched=tuple(name for name in classes if name in CITYSCAPES_CLASSES),
        only_in_run=tuple(name for name in classes if name not in CITYSCAPES_CLASSES),
        only_in_domain=tuple(name for name in CITYSCAPES_CLASSES if name not in classes),
    )
