"""Custom training images: a folder with one subfolder per class, or an .npz of images and labels.

Every image is converted to 28 × 28 grey: transparency becomes white, the shorter side is padded to a square with the
colour of the top left pixel, and the square is resized (bicubic). Nothing is inverted.
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

MAX_IMAGES = 500_000  # in a folder
MAX_BYTES = 2**30  # of the arrays of an .npz, more than a million images
GREY_OR_COLOUR = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}  # 8 bits per channel


def read(path: Path) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Pixels uint8 `[N, 28, 28]`, labels int64 `[N]` and class names; raises ValueError or OSError."""
    pixels, labels, names = read_folder(path) if path.is_dir() else read_npz(path)
    for name in names:
        check.plain_name(f"a class in {path}", name)
    if empty := set(range(len(names))) - set(labels):
        raise ValueError(f"the class {names[min(empty)]} in {path} has no images; add some, or remove it")
    return torch.from_numpy(np.stack(pixels)), torch.tensor(labels), names


def read_folder(path: Path) -> tuple[list[np.ndarray], list[int], tuple[str, ...]]:
    """The images in the subfolders of `path`, one class each in alphabetical order; hidden ones are skipped."""
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
            f"and at most {MAX_IMAGES:,} images"
        )
    pixels = [opened(file) for file, _ in tqdm(files, desc="reading images", unit="image", dynamic_ncols=True)]
    return pixels, [label for _, label in files], names


def read_npz(path: Path) -> tuple[list[np.ndarray], list[int], tuple[str, ...]]:
    """The images and labels of an .npz.

    The labels are indices into its `classes`, a list of names; without `classes`, each distinct label is a class.
    """
    images, labels, names = read_arrays(path)
    if names is None:
        names, labels = np.unique(labels, return_inverse=True)
    elif names.dtype.kind != "U" or names.ndim != 1 or labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(f"classes must be a list of names, one for each label in {path}")
    pixels = images if images.shape[1:] == (SIZE, SIZE) else [fitted(Image.fromarray(image)) for image in images]
    return pixels, labels.tolist(), tuple(map(str, names))


def read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """`images` uint8 `[N, H, W]`, integer `labels` `[N]` and, if present, `classes` of an .npz.

    Raises ValueError or OSError, in one sentence, if the file is not such an .npz or is too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
        if size <= MAX_BYTES:
            with np.load(path, allow_pickle=False) as archive:
                images, labels, classes = archive["images"], archive["labels"], archive.get("classes")
    except (KeyError, TypeError, ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error):
        raise ValueError(f"{path} is not an .npz with images and labels") from None
    if size > MAX_BYTES:
        raise ValueError(f"{path} unpacks to {size:,} bytes; at most {MAX_BYTES:,} are read")
    if images.dtype != np.uint8 or images.ndim != 3 or not images.size:
        raise ValueError(f"images must be uint8 [N, H, W], not {images.dtype} {list(images.shape)}")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must be whole numbers [{len(images)}], one per image, not {labels.dtype} {list(labels.shape)}"
        )
    return images, labels, classes


def opened(path: Path) -> np.ndarray:
    """An image file as uint8 `[28, 28]`; raises ValueError if it is damaged, too large or of another bit depth."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS or image.mode not in GREY_OR_COLOUR:
                raise ValueError
            return fitted(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except Exception:  # a damaged image may raise anything
        raise ValueError(
            f"{path} is not an intact image with 8 bits per channel and at most {Image.MAX_IMAGE_PIXELS:,} pixels; "
            "replace or remove it"
        ) from None


def fitted(image: Image.Image) -> np.ndarray:
    """An image as uint8 `[28, 28]`, converted as described in the module docstring."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    grey = image.convert("L")
    return np.asarray(ImageOps.pad(grey, (SIZE, SIZE), color=grey.getpixel((0, 0))))
