"""Command: evaluate digits from weights or from a file. `python -m training.evaluate --weights runs/full/weights`

Writes metrics.json and plots. The default is the headline row; `--full` adds CAS and sweeps over steps, guidance and
time shift.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from model import check, weights
from model.common import add_shared, python, sentence_on_error
from model.device import pick
from model.sampling import SamplingConfig, check_seed
from training.measure.evaluation import MAX_COUNT, PARTS, SWEEPS, Evaluation, Results, drawing_of
from training.measure.reference import Reference
from training.measure.samples import MIN_COUNT, FileSamples, GeneratedSamples
from training.release.card import results_table


def parts_of(options: argparse.Namespace) -> list[str]:
    """The parts to measure, in order; raises ValueError for unknown parts, or sweeps over --samples."""
    asked = options.only.split(",") if options.only else PARTS if options.full else ["headline"]
    foreign = sorted(set(asked) - set(PARTS))
    if foreign:
        raise ValueError(f"--only takes {', '.join(PARTS)}, not {', '.join(foreign)}")
    if options.samples:
        if options.only and set(SWEEPS) & set(asked):
            raise ValueError(
                "--samples are already drawn, so there is nothing to sweep over; use --only with headline and cas"
            )
        asked = set(asked) - set(SWEEPS)
    return [part for part in PARTS if part in asked]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    add_shared(what, "--weights")
    what.add_argument(
        "--samples", type=Path, help="an .npz of images uint8 [N, 28, 28] and labels [N] to evaluate instead of weights"
    )
    parser.add_argument(
        "--count",
        type=int,
        help=f"digits per row, {MIN_COUNT} to {MAX_COUNT} (default: {MAX_COUNT}; on a CPU, sweeps 2000)",
    )
    parser.add_argument("--full", action="store_true", help="also measure CAS and the sweeps; saved rows are reused")
    parser.add_argument("--only", metavar="PARTS", help=f"only some of {','.join(PARTS)}; saved rows are reused")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for metrics.json and plots (default: that of the weights or samples, else out/)",
    )
    add_shared(parser, "--steps", "--guidance", "--seed", "--device", "--data-root")
    options = parser.parse_args(argv)
    with sentence_on_error(parser):
        for name in ("torchmetrics", "matplotlib"):
            if find_spec(name) is None:
                needed = python("-m", "pip", "install", "-r", "requirements-dev.txt")
                raise ValueError(f"evaluation needs {name}; install it with: {needed}")
        parts, device = parts_of(options), pick(options.device)
        count = check.whole("count", MAX_COUNT if options.count is None else options.count, MIN_COUNT, MAX_COUNT)
        seed = check_seed(options.seed, count)
        SamplingConfig().updated(steps=options.steps, guidance=options.guidance)  # fail before anything is loaded
        samples = FileSamples(options.samples) if options.samples else GeneratedSamples(options.weights, device)
        results = Results((options.out or samples.folder or Path("out")) / weights.METRICS, samples)
        drawing = drawing_of(samples, count, seed, steps=options.steps, guidance=options.guidance)
        command = " ".join(["python -m training.evaluate", *(sys.argv[1:] if argv is None else argv)])
        try:
            reference = Reference(device, options.data_root)
            if options.samples and (doubt := reference.doubt(*samples.digits(count, seed))):
                print(f"Warning: {doubt}.", file=sys.stderr)
            evaluation = Evaluation(samples, reference, results, drawing, command)
            evaluation.run(parts, options.count, fresh_headline=not (options.full or options.only))
        except KeyboardInterrupt:
            print(f"\nStopped. Finished rows are in {results.path}; --full or --only continues from there.")
            return 130
    print(results_table(results.read()))
    print(f"{samples.name}: {', '.join(parts)} in {results.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
