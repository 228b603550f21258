"""What the images are, and the way between pixels and the range the network works in.

Outside: uint8 `[B, 28, 28]`, 0 black, 255 white. Inside: float `[B, 1, 28, 28]`, unit variance.
"""

import io

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image

SIZE = 28
CLASSES = (*"0123456789", "black", "white")
BLACK, WHITE = CLASSES.index("black"), CLASSES.index("white")


def to_model(pixels: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """Pixels uint8 `[B, 28, 28]` → float32 `[B, 1, 28, 28]`; `mean` and `std` in units of the white level."""
    return (pixels.unsqueeze(1).float() / 255 - mean) / std


def to_pixels(x: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """The inverse of `to_model`, clipped to black and white and rounded: `[B, 1, 28, 28]` → uint8 `[B, 28, 28]`."""
    return ((x.float().squeeze(1) * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def enlarge(pixels: torch.Tensor, factor: int) -> np.ndarray:
    """Every pixel a crisp square: uint8 `[..., H, W]` → uint8 array `[..., H·factor, W·factor]`."""
    return pixels.cpu().repeat_interleave(factor, -2).repeat_interleave(factor, -1).numpy()


def sheet(pixels: torch.Tensor, columns: int, scale: int = 2, gap: int = 2, background: int = 64) -> Image.Image:
    """Many images as one grey picture, row by row: uint8 `[B, 28, 28]` → `columns` to a row, each pixel `scale` wide.

    The gap is grey, so that an all black and an all white image can both be told from it.
    """
    columns = min(columns, len(pixels))
    count, edge = -len(pixels) % columns, gap * scale
    tiles = F.pad(torch.from_numpy(enlarge(pixels, scale)), (edge, 0, edge, 0), value=background)
    tiles = F.pad(tiles, (0, 0, 0, 0, 0, count), value=background)  # places without an image in the last row
    grid = rearrange(tiles, "(rows columns) h w -> (rows h) (columns w)", columns=columns)
    return Image.fromarray(F.pad(grid, (0, edge, 0, edge), value=background).numpy())


def png(pixels: torch.Tensor, scale: int = 1) -> bytes:
    """One image uint8 `[H, W]` as a PNG file, each pixel `scale` wide."""
    file = io.BytesIO()
    Image.fromarray(enlarge(pixels, scale)).save(file, "png")
    return file.getvalue()


def animation(frames: torch.Tensor, milliseconds: float, scale: int = 1) -> bytes:
    """Images uint8 `[F, H, W]` as an animated PNG file that plays once, in `milliseconds`, and rests on the last.

    That is also the one picture for a viewer that knows no animations.
    """
    file = io.BytesIO()
    film = [Image.fromarray(frame) for frame in enlarge(frames, scale)]
    film[-1].save(file, "png", save_all=True, append_images=film, default_image=True, duration=milliseconds / len(frames), loop=1)
    return file.getvalue()
