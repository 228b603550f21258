"""Images of your own to train on: a folder with one folder of images per class, or an .npz of images and labels.

Every image becomes grey and 28 × 28: transparency becomes white, the shorter side is padded to a square with the colour
of the top left pixel, and the square is resized (bicubic). Nothing is inverted.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from model import check
from model.images import SIZE

MAX_IMAGES, MAX_BYTES = 500_000, 2**30
GREY_OR_COLOUR = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}  # 8 bits per channel


def read(path: Path) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Pixels uint8 `[N, 28, 28]`, labels int64 `[N]` and the names of the classes; raises ValueError or OSError."""
    pixels, labels, names = read_folder(path) if path.is_dir() else read_npz(path)
    for name in names:
        check.plain_name(f"a class in {path}", name)
    if empty := set(range(len(names))) - set(labels):
        raise ValueError(f"the class {names[min(empty)]} in {path} has no images; add some, or remove it")
    return torch.from_numpy(np.stack(pixels)), torch.tensor(labels), names


def read_folder(path: Path) -> tuple[list[np.ndarray], list[int], tuple[str, ...]]:
    """The images of all folders in `path`, which are the classes in alphabetical order; hidden ones are left out."""
    names = tuple(sorted(part.name for part in path.iterdir() if part.is_dir() and not part.name.startswith(".")))
    files = [
        (file, label)
        for label, name in enumerate(names)
        for file in sorted((path / name).rglob("*"))
        if file.suffix.lower() in IMG_EXTENSIONS and not file.name.startswith(".") and file.is_file()
    ]
    if not 0 < len(files) <= MAX_IMAGES:
        raise ValueError(
            f"{path} holds {len(files):,} images; it needs one folder of images for each class, "
            f"with {MAX_IMAGES:,} images at most"
        )
    pixels = [opened(file) for file, _ in tqdm(files, desc="reading images", unit="image", dynamic_ncols=True)]
    return pixels, [label for _, label in files], names


def read_npz(path: Path) -> tuple[list[np.ndarray], list[int], tuple[str, ...]]:
    """The `images` uint8 `[N, H, W]` and `labels` `[N]` of an .npz.

    The labels count in its `classes`, a list of names; without that, each label that occurs names a class.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
        if size <= MAX_BYTES:
            with np.load(path, allow_pickle=False) as archive:
                images, labels, names = archive["images"], archive["labels"], archive.get("classes")
    except (KeyError, TypeError, ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error):
        raise ValueError(f"{path} is not an .npz with images and labels") from None
    if size > MAX_BYTES:
        raise ValueError(f"{path} unpacks to {size:,} bytes; at most {MAX_BYTES:,} are read")
    if images.dtype != np.uint8 or images.ndim != 3 or not 0 < len(images) <= MAX_IMAGES or not images.size:
        raise ValueError(
            f"images must be uint8 [N, H, W], at most {MAX_IMAGES:,}, not {images.dtype} {list(images.shape)}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(f"labels must be whole numbers [{len(images)}], not {labels.dtype} {list(labels.shape)}")
    if names is None:
        names, labels = np.unique(labels, return_inverse=True)
    elif names.dtype.kind != "U" or names.ndim != 1 or labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(f"classes must be a list of names, one for each label in {path}")
    pixels = images if images.shape[1:] == (SIZE, SIZE) else [fitted(Image.fromarray(image)) for image in images]
    return pixels, labels.tolist(), tuple(map(str, names))


def opened(path: Path) -> np.ndarray:
    """An image file as uint8 `[28, 28]`; raises ValueError for one that is damaged, too large or of another depth."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS or image.mode not in GREY_OR_COLOUR:
                raise ValueError
            return fitted(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except Exception:  # a damaged image may raise anything
        raise ValueError(
            f"{path} is no whole image of 8 bits per channel and at most {Image.MAX_IMAGE_PIXELS:,} pixels; "
            "replace it, or take it out"
        ) from None


def fitted(image: Image.Image) -> np.ndarray:
    """An image as uint8 `[28, 28]`, as this module's docstring says."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    grey = image.convert("L")
    return np.asarray(ImageOps.pad(grey, (SIZE, SIZE), color=grey.getpixel((0, 0))))
