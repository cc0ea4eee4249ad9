"""Which domains a run is evaluated on."""

from collections.abc import Sequence
from pathlib import Path

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
