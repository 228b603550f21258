"""Classes, the conversion between pixels and the network's range, and image files.

Outside the network: uint8 `[B, 28, 28]`, 0 black, 255 white. Inside: float `[B, 1, 28, 28]`, unit variance.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from PIL.PngImagePlugin import PngInfo

SIZE = 28
CLASSES = (*"0123456789", "black", "white")
BLACK, WHITE = CLASSES.index("black"), CLASSES.index("white")


def to_model(pixels: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """Pixels uint8 `[B, 28, 28]` → float32 `[B, 1, 28, 28]`; `mean` and `std` of pixels in [0, 1]."""
    return (pixels.unsqueeze(1).float() / 255 - mean) / std


def to_pixels(x: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """The inverse of `to_model`, rounded and clipped: `[B, 1, 28, 28]` → uint8 `[B, 28, 28]`."""
    return ((x.float().squeeze(1) * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def enlarge(pixels: torch.Tensor, factor: int) -> np.ndarray:
    """Nearest-neighbour upscaling: uint8 `[..., H, W]` → uint8 array `[..., H·factor, W·factor]`."""
    return pixels.cpu().repeat_interleave(factor, -2).repeat_interleave(factor, -1).numpy()


def sheet(pixels: torch.Tensor, columns: int, scale: int = 2, gap: int = 2, background: int = 64) -> Image.Image:
    """Images uint8 `[B, 28, 28]` as one picture, row by row, `columns` per row, each pixel `scale` wide.

    The gap is grey, so that all-black and all-white images stand out from it.
    """
    columns = min(columns, len(pixels))
    count, edge = -len(pixels) % columns, gap * scale
    tiles = F.pad(torch.from_numpy(enlarge(pixels, scale)), (edge, 0, edge, 0), value=background)
    tiles = F.pad(tiles, (0, 0, 0, 0, 0, count), value=background)  # fill the last row
    grid = rearrange(tiles, "(rows columns) h w -> (rows h) (columns w)", columns=columns)
    return Image.fromarray(F.pad(grid, (0, edge, 0, edge), value=background).numpy())


def comment(text: str) -> PngInfo:
    """The text chunk `Comment` of a PNG file, which most viewers show."""
    chunks = PngInfo()
    if text:
        chunks.add_text("Comment", text)
    return chunks


def columns(count: int) -> int:
    """Columns of a sheet: ten, so that repeating classes line up, or a multiple of ten for a large sheet."""
    return min(count, 10 * max(1, round((count / 100) ** 0.5)))


def save(
    file: Path | BinaryIO, kind: str, pixels: torch.Tensor, labels: torch.Tensor, columns: int, about: str = ""
) -> None:
    """Write a sheet (`png`, with `about` as its comment) or a labelled data set (`npz`: `images` uint8 `[N, 28, 28]`,
    `labels` int64 `[N]`)."""
    if kind == "npz":
        np.savez_compressed(file, images=pixels.numpy(), labels=labels.numpy())
    else:
        sheet(pixels, columns).save(file, "png", pnginfo=comment(about))
