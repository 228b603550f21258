"""Drawings as HTML: pixelated images with alt texts, links that reopen a digit, and files to save."""

import base64
import io
from urllib.parse import quote

import torch

from model import images
from model.sampling import Film, SamplingConfig

FRAMES = 9  # pictures in a row of the film strip


def picture(data: bytes, text: str) -> str:
    """A PNG file as a pixelated `<img>` with an alt text."""
    return f'<img class="pixels" alt="{text}" src="{uri(data)}">'


def uri(data: bytes, kind: str = "image/png") -> str:
    """A file as a data URI, so that nothing is stored on the server."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def named(digit: str) -> str:
    """A class as it reads in a sentence: 7, black image."""
    return digit if digit in "0123456789" else f"{digit} image"


def in_steps(count: int) -> str:
    return f"in {count} step{'s'[: count > 1]}"


def digit_html(film: Film, digit: str, seed: int, sampling: SamplingConfig) -> str:
    """The digit, animated once for half a second (unless the visitor prefers reduced motion), with its files and its
    link."""
    article = "An" if digit == "8" else "A"
    text = f"{article} {named(digit)}, drawn {in_steps(sampling.steps)} from the noise of seed {seed}"
    few = film.noisy[film.frames(16), 0]
    moving = picture(images.animation(few, 500), text)
    still = f'<source media="(prefers-reduced-motion: reduce)" srcset="{uri(images.png(film.digits[0]))}">'
    name, saved = f"{digit}-seed{seed}", images.png(film.digits[0], 16, sampling.recipe(digit, seed))
    return (
        f'<div class="digit" data-link="{link(digit, seed, sampling)}"><picture>{still}{moving}</picture><p>'
        f'<a download="{name}.png" href="{uri(saved)}">Save picture</a> '
        f'<a download="{name}-film.png" href="{uri(images.animation(few, 1500, 8))}">Save animation</a></p></div>'
    )


def film_html(film: Film, with_velocity: bool) -> str:
    """Film strips from noise to the digit: x_t, the image predicted at t, and optionally the velocity."""
    chosen = film.frames(FRAMES)
    rows = [("x<sub>t</sub>: from noise (t = 1) to the digit (t = 0)", "x", film.noisy, chosen)]
    rows.append(("x<sub>t</sub> − t·v: the image predicted at that moment", "prediction", film.predicted, chosen))
    if with_velocity:
        rows.append(("v: the velocity, grey where nothing changes", "velocity", film.velocity, chosen[:-1]))
    parts = ""
    for title, short, row, indices in rows:
        figures = ""
        for i in indices:
            t = f"{film.times[i]:.2f}"
            figures += (
                f"<figure>{picture(images.png(row[i, 0]), f'{short} at t = {t}')}<figcaption>{t}</figcaption></figure>"
            )
        parts += f'<h4>{title}</h4><div class="strip">{figures}</div>'
    return f'<div class="film">{parts}</div>'


def link(digit: str, seed: int, sampling: SamplingConfig) -> str:
    """The query string that opens this digit."""
    return f"?digit={quote(digit)}&seed={seed}&steps={sampling.steps}&guidance={sampling.guidance:g}"


def steps_html(columns: list[tuple[int, torch.Tensor, float]], rows: tuple[str, ...]) -> str:
    """One row per class, one column per number of steps drawn so far, with its milliseconds."""
    cells = ""
    for count, pixels, milliseconds in columns:
        labelled = zip(rows, pixels, strict=True)
        pictures = "".join(picture(images.png(image), f"{named(row)} {in_steps(count)}") for row, image in labelled)
        cells += f"<div><b>{count}</b>{pictures}<span>{milliseconds:.0f} ms</span></div>"
    return f'<div class="steps">{cells}</div>'


def cell_html(pixels: torch.Tensor, digit: str, seed: int, sampling: SamplingConfig) -> str:
    """A digit of a sheet, uint8 `[28, 28]`, as a link that opens it in the Draw tab."""
    return f'<a href="{link(digit, seed, sampling)}">{picture(images.png(pixels), named(digit))}</a>'


def sheet_html(cells: str, columns: int, files: str = "") -> str:
    """The cells of a sheet in a grid, followed by the files to save, if any."""
    grid = f"grid-template-columns: repeat({columns}, minmax(0, 1fr))"
    return f'<div class="sheet"><div class="cells" style="{grid}">{cells}</div>{files}</div>'


def files_html(pixels: torch.Tensor, labels: torch.Tensor, columns: int, seed: int, sampling: SamplingConfig) -> str:
    """A sheet `[N, 28, 28]`, its first digit drawn from `seed`, as a picture and as a data set."""
    sheet, data_set = io.BytesIO(), io.BytesIO()
    about = sampling.recipe(",".join(images.CLASSES[label] for label in labels), seed)
    images.save(sheet, "png", pixels, labels, columns, about)
    images.save(data_set, "npz", pixels, labels, columns)
    return (
        f'<p><a download="digits.png" href="{uri(sheet.getvalue())}">Save picture</a> '
        f'<a download="digits.npz" href="{uri(data_set.getvalue(), "application/zip")}">Save data set (.npz)</a></p>'
    )
