"""Command: draw labelled digits as a picture or a data set. `python -m model.generate --labels 0-9 --out digits.png`"""

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from model import check, images, weights
from model.common import add_shared, replacing, sentence_on_error
from model.device import pick
from model.sampling import check_seed, draw, parse_labels

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model.generate", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--labels", help="7, 0-9, 3,5,black, or mnist for its class shares (default: the weights' first ten classes)"
    )
    parser.add_argument("--count", type=int, default=100, help="number of digits (default 100)")
    parser.add_argument(
        "--out", type=Path, default=Path("digits.png"), help=".png sheet or .npz data set (default digits.png)"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the network (default: bfloat16 if supported)")
    add_shared(parser, "--weights", "--steps", "--guidance", "--seed", "--device")
    options = parser.parse_args(argv)
    with sentence_on_error(parser):
        if options.out.suffix not in (".png", ".npz"):
            raise ValueError(f"--out must end in .png or .npz, not {options.out}")
        count = check.whole("count", options.count, 1, 1_000_000)
        seed = check_seed(options.seed, count)
        loaded = weights.load(options.weights, pick(options.device), DTYPES.get(options.dtype))
        names = loaded.network.class_names
        text = options.labels or ",".join(names[:10])
        labels = parse_labels(text, count, seed, names)
        asked = loaded.sampling.updated(steps=options.steps, guidance=options.guidance)
        network, sampling = loaded.choose(asked)
        with replacing(options.out) as new:
            new.touch()  # fail now, not after the work, if the folder cannot be written
            batches = []
            with tqdm(total=count, unit="digit", dynamic_ncols=True) as bar:
                for batch in draw(network, labels, seed, sampling):
                    batches.append(batch)
                    bar.update(len(batch))
            about = sampling.recipe(text, seed)
            images.save(new, options.out.suffix[1:], torch.cat(batches), labels, images.columns(count), about)
    how = f"{sampling.steps} steps, guidance {sampling.guidance:g}, weights {loaded.source}"
    print(f"{options.out}: {count} digits, {how}")
    if note := sampling.note(options.guidance):
        print(note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
