"""The feature extractor: a small digit classifier whose features are used to compare sets of digits.

Command: train it on real MNIST. `python -m training.measure.extractor`. It is used only for evaluation, never to train
the generator.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import nn
from tqdm import tqdm

from model import check, weights
from model.common import add_shared, git_commit, python, replacing, sentence_on_error, sha256
from model.device import described, has_bfloat16, pick
from model.sampling import check_seed
from training import data

PATH = Path(__file__).with_name("extractor.safetensors")
BATCH, CHUNK = 128, 100  # images per training step, and per forward pass when measuring; a CPU is slower with more
AGAIN = python("-m", "training.measure.extractor")
MIN_ACCURACY = 0.995  # accuracy on the real test set


def convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()
    )


class Extractor(nn.Module):
    """Six convolutions at three scales and a linear head.

    The features are the spatial means of the fourth convolution's 128 channels.
    Later layers are unsuitable: a trained classifier collapses each class to a point (Papyan et al., arXiv
    2008.08186). Within-class variance is 8 % of the total after the sixth convolution and 30 % after the fourth.
    """

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            convolution(1, 32),  # [B, 32, 28, 28]
            nn.MaxPool2d(2),
            convolution(32, 64),  # [B, 64, 14, 14]
            convolution(64, 64),
            nn.MaxPool2d(2),
            nn.Dropout2d(0.1),
            convolution(64, 128),  # [B, 128, 7, 7]
        )
        self.rest = nn.Sequential(convolution(128, 128), nn.Dropout2d(0.1), convolution(128, 128))
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(128, 10))
        self.register_buffer("spread", torch.ones(()))  # unit of the features: their std over the training set

    def features_and_logits(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features `[B, 128]` and class logits `[B, 10]` of pixels uint8 (or float in 0..255) `[B, 28, 28]`."""
        x = self.trunk(pixels.unsqueeze(1).float() / 255)  # [B, 128, 7, 7]
        return x.mean((2, 3)) / self.spread, self.head(self.rest(x).mean((2, 3)))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.features_and_logits(pixels)[0]


def augment(pixels: torch.Tensor) -> torch.Tensor:
    """A random small affine transform of each image `[B, 28, 28]`: float in 0..255, black outside."""
    size = len(pixels)
    linear = torch.eye(2, device=pixels.device) + 0.08 * torch.randn(size, 2, 2, device=pixels.device)
    shift = 0.08 * torch.randn(size, 2, 1, device=pixels.device)  # in half widths: about one pixel
    grid = F.affine_grid(torch.cat([linear, shift], 2), [size, 1, *pixels.shape[1:]], align_corners=False)
    return F.grid_sample(pixels.unsqueeze(1).float(), grid, align_corners=False).squeeze(1)


def fit(
    pixels: torch.Tensor, labels: torch.Tensor, steps: int, device: torch.device, augmented: bool = False, seed: int = 0
) -> Extractor:
    """A new classifier trained for `steps` steps of 128 images on pixels uint8 `[N, 28, 28]` and labels 0..9 `[N]`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Extractor().to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
        epochs = -(-steps * BATCH // len(pixels))
        order = torch.cat([torch.randperm(len(pixels)) for _ in range(epochs)])[: steps * BATCH].view(steps, BATCH)
        pixels, labels = pixels.to(device), labels.to(device)
        for chosen in tqdm(
            order.to(device), desc="training the classifier", unit="step", leave=False, dynamic_ncols=True
        ):
            batch = augment(pixels[chosen]) if augmented else pixels[chosen]
            with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
                loss = F.cross_entropy(network.features_and_logits(batch)[1], labels[chosen])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def extract(extractor: Extractor, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features float32 `[N, 128]` and predicted classes int64 `[N]` of pixels uint8 `[N, 28, 28]`, on the extractor's
    device."""
    device = next(extractor.parameters()).device
    chunks = tqdm(pixels.split(CHUNK), desc="features", unit="chunk", leave=False, dynamic_ncols=True)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # the same results on every device
        results = [extractor.features_and_logits(chunk.to(device)) for chunk in chunks]
    return torch.cat([features for features, _ in results]), torch.cat([logits.argmax(1) for _, logits in results])


def accuracy(predictions: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of predictions `[N]` that equal the label `[N]`."""
    return (predictions == labels.to(predictions.device)).float().mean().item()


def save(extractor: Extractor, path: Path, notes: dict[str, str]) -> None:
    """Write the extractor in float16, with `notes` as the file's metadata."""
    tensors = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in extractor.state_dict().items()
    }
    with replacing(path) as new:
        new.write_bytes(serialized({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, notes))


def load(device: torch.device | str = "cpu", path: Path = PATH) -> tuple[Extractor, dict]:
    """The extractor and its notes: sha256, accuracy, command, commit.

    Raises ValueError or OSError, in one sentence, for a file that is missing or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; train it with: {AGAIN}")
    extractor = Extractor()
    try:
        with safe_open(path, "pt") as file:
            extractor.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            notes = file.metadata()
        notes = {**notes, "accuracy": float(notes["accuracy"]), "sha256": sha256(path)}
    except (SafetensorError, RuntimeError, TypeError, KeyError, ValueError):
        raise weights.damaged(path, "damaged, or not an extractor") from None
    return extractor.to(device).eval().requires_grad_(False), notes


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.measure.extractor", description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12, help="passes over the training set (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and augmentation (default 0)")
    parser.add_argument(
        "--out", type=Path, default=PATH, help="the file to write (default training/measure/extractor.safetensors)"
    )
    add_shared(parser, "--device", "--data-root")
    options = parser.parse_args(argv)
    with sentence_on_error(parser):
        device, started = pick(options.device), time.monotonic()
        check.whole("epochs", options.epochs, 1, 1000)
        check_seed(options.seed)
        pixels, labels = data.load("mnist", options.data_root)
        steps = options.epochs * len(pixels) // BATCH
        extractor = fit(pixels, labels, steps, device, augmented=True, seed=options.seed)
        extractor.spread.copy_(extract(extractor, pixels)[0].var(0).mean().sqrt())
        extractor = extractor.half().float()  # rounded to float16, as in the file
        pixels, labels = data.load("mnist", options.data_root, train=False)
        right = accuracy(extract(extractor, pixels)[1], labels)
        if right < MIN_ACCURACY:
            raise ValueError(
                f"the accuracy on the real test set is {right:.2%}, below {MIN_ACCURACY:.1%}; nothing is written"
            )
        notes = {
            "accuracy": f"{right:.4f}",
            "command": "python -m training.measure.extractor " + " ".join(sys.argv[1:] if argv is None else argv),
            "commit": git_commit(),
            "device": described(device),
            "seconds": f"{time.monotonic() - started:.0f}",
            "torch": torch.__version__,
        }
        save(extractor, options.out, {name: value.strip() for name, value in notes.items()})
    print(f"{options.out}: {right:.2%} on the real test set, {notes['seconds']} seconds on {notes['device']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
