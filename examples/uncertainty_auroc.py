"""Does uncertainty flag the wrong pixels? AUROC of disagreement and of 1 - confidence for each domain.

    python examples/uncertainty_auroc.py RUN [--domain all] [--samples 8] [--images 8]

Nothing is trained. Each labelled image is segmented as `diff predict --samples N` does it: the softmax maps of N draws
of noise are averaged, and their disagreement is what `--write uncertainty` draws. The AUROC is the probability that a
wrong pixel has a higher value than a right one: 0.5 is chance, 1 separates them fully. Pixels without a label are
ignored. RUN is a run folder, a name under runs/ or a checkpoint; --domain takes what `diff eval --domain` takes.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffcli.classes import IGNORE_ID
from diffcli.data.dataset import Domain, open_domain
from diffcli.errors import DiffError
from diffcli.evaluation.domains import DomainChoice, wanted_domains
from diffcli.prediction.inputs import Job, Read
from diffcli.prediction.segmenter import Segmenter, at_network_size
from diffcli.prediction.trained import TrainedNetwork
from diffcli.runs.folder import RUNS, find_run
from diffcli.runs.opening import open_run
from diffcli.runtime import console

Counts = NDArray[np.int64]
SHIFT = 14
"""Low bits of a float32 that are dropped to bin it: the bits of non-negative floats are in the order of the numbers."""
BINS = (np.float32(1).view(np.int32) >> SHIFT) + 1


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="run folder, name under runs/, or checkpoint")
    parser.add_argument("--domain", help="domain, comma list of domains, or all  [the run's own data.eval]")
    parser.add_argument("--samples", type=int, default=8, help="draws of noise")
    parser.add_argument("--images", type=int, default=8, help="images of each domain")
    options = parser.parse_args()
    trained = open_run(find_run(options.run, runs=RUNS))
    entries = wanted_domains(trained, DomainChoice(names=options.domain))
    model = trained.load_model()
    settings = trained.config.eval
    network = TrainedNetwork(model, settings, samples=options.samples)
    segmenter = Segmenter(network, settings, confidence=True)
    rows = []
    for entry in entries:
        limited = entry.model_copy(update={"limit": options.images})
        domain = open_domain(limited, purpose="eval", classes=model.config.classes)
        rows.append([domain.name, *measure(domain, segmenter)])
    console.table(
        f"{options.samples} draws of noise, {options.images} images of each domain: AUROC against wrong pixels",
        ["domain", "wrong %", "disagreement", "1 - confidence"],
        rows,
        digits=3,
    )


def measure(domain: Domain, segmenter: Segmenter) -> tuple[float, float, float]:
    """(share of wrong pixels in percent, AUROC of the disagreement, AUROC of 1 - confidence)."""
    counts = np.zeros((2, 2, BINS), dtype=np.int64)  # score, right or wrong, value
    with console.progress(domain.name, len(domain), unit="images") as bar:
        for index in range(len(domain)):
            image, label = domain.load(index)
            job = Job(Path(domain.identity(index)), Path("unwritten.png"))
            seen = at_network_size(image, segmenter.settings.size)
            [planes] = segmenter.segment([Read(job, seen, label.shape, None, None)])
            assert planes.uncertainty is not None
            assert planes.confidence is not None
            known = label != IGNORE_ID
            wrong = (planes.mask != label)[known]
            for score, values in enumerate((planes.uncertainty, 1 - planes.confidence)):
                add(counts[score], values[known], wrong)
            bar.update()
    right, wrong = counts[0].sum(1)
    return float(100 * wrong / (right + wrong)), *(auroc(*counts[score]) for score in (0, 1))


def add(counts: Counts, values: NDArray[np.float32], wrong: NDArray[np.bool_]) -> None:
    """Count float32 values of 0..1 into (2, BINS): right pixels, wrong pixels."""
    bins = values.clip(0, 1).astype(np.float32).view(np.int32) >> SHIFT
    counts[0] += np.bincount(bins[~wrong], minlength=BINS)
    counts[1] += np.bincount(bins[wrong], minlength=BINS)


def auroc(right: Counts, wrong: Counts) -> float:
    """Probability that a wrong pixel's value is above a right one's, ties count half; nan without both."""
    below = np.cumsum(right) - right
    pairs = float(right.sum()) * float(wrong.sum())
    return float((wrong * (below + right / 2)).sum() / pairs) if pairs else float("nan")


if __name__ == "__main__":
    try:
        main()
    except DiffError as error:
        raise SystemExit(f"error: {error}") from None
