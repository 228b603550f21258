"""What was drawn, as HTML and its style: crisp pixels, the text that says what each picture shows, and files to keep."""

import base64
import io

import torch

from model import generate, images
from model.film import Film

FRAMES = 9  # pictures in a row of the film strip

CSS = """
.pixels { image-rendering: pixelated; display: block; margin: 0 auto !important; border-radius: 4px; }
.pixels { outline: 1px solid var(--border-color-primary); }
.digit .pixels { width: 336px; max-width: 100%; aspect-ratio: 1; border-radius: 8px; }
.digit p, .sheet p { text-align: center; margin: 8px 0 0 !important; }
.digit p a, .sheet p a { margin: 0 .6em; white-space: nowrap; }
.film h4 { margin: 0 !important; font-size: 13px; font-weight: 500; }
.strip { display: grid; grid-template-columns: repeat(9, minmax(0, 1fr)); gap: 6px; margin: 2px 0 10px; }
.strip figure { margin: 0 !important; }
.strip .pixels, .cells .pixels, .steps .pixels { width: 100%; aspect-ratio: 1; }
.strip figcaption { text-align: center; font-size: 11px; font-variant-numeric: tabular-nums; }
.steps { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 6px; max-width: 640px; margin: 0 auto; }
.steps div { display: grid; gap: 6px; text-align: center; font-size: 13px; }
.cells { display: grid; gap: 3px; margin: 0 auto; }
.cells a { display: block; padding: 0 !important; }
"""


def picture(data: bytes, text: str) -> str:
    """A PNG file as an image of crisp pixels, with the text that says what it shows."""
    return f'<img class="pixels" alt="{text}" src="{uri(data)}">'


def uri(data: bytes, kind: str = "image/png") -> str:
    """A file as an address of its own: nothing of it is ever stored on the server."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def named(digit: str) -> str:
    """A class in a sentence: 7, black image."""
    return digit if digit in "0123456789" else f"{digit} image"


def in_steps(count: int) -> str:
    return f"in {count} step{'s'[: count > 1]}"


def digit_html(film: Film, digit: str, seed: int, guidance: float) -> str:
    """The digit, drawing itself once in half a second, unless the visitor wants no motion; both as files; and its link."""
    steps = len(film.times) - 1
    text = f"{'An' if digit == '8' else 'A'} {named(digit)}, drawn {in_steps(steps)} from the noise of seed {seed}"
    few = film.noisy[film.frames(16)]
    moving = picture(images.animation(few, 500), text)
    still = f'<source media="(prefers-reduced-motion: reduce)" srcset="{uri(images.png(film.digit))}">'
    name = f"{digit}-seed{seed}"
    return (
        f'<div class="digit" data-link="{link(digit, seed, steps, guidance)}"><picture>{still}{moving}</picture><p>'
        f'<a download="{name}.png" href="{uri(images.png(film.digit, 16))}">Save picture</a> '
        f'<a download="{name}-film.png" href="{uri(images.animation(few, 1500, 8))}">Save animation</a></p></div>'
    )


def film_html(film: Film, with_velocity: bool) -> str:
    """The way from noise to the digit in rows: x_t, the image predicted in it, and the velocity on demand."""
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
            figures += f"<figure>{picture(images.png(row[i]), f'{short} at t = {t}')}<figcaption>{t}</figcaption></figure>"
        parts += f'<h4>{title}</h4><div class="strip">{figures}</div>'
    return f'<div class="film">{parts}</div>'


def link(digit: str, seed: int, steps: int, guidance: float) -> str:
    """The query of the address that opens this digit."""
    return f"?digit={digit}&seed={seed}&steps={steps}&guidance={guidance:g}"


def steps_html(columns: list[tuple[int, torch.Tensor, float]], rows: tuple[str, ...]) -> str:
    """A row for each class, a column for each number of steps drawn so far, the milliseconds at its foot."""
    cells = ""
    for count, pixels, milliseconds in columns:
        pictures = "".join(picture(images.png(image), f"{named(row)} {in_steps(count)}") for row, image in zip(rows, pixels, strict=True))
        cells += f"<div><b>{count}</b>{pictures}<span>{milliseconds:.0f} ms</span></div>"
    return f'<div class="steps">{cells}</div>'


def cell_html(pixels: torch.Tensor, digit: str, seed: int, steps: int, guidance: float) -> str:
    """A digit of a sheet, uint8 `[28, 28]`, as a link that opens it in the Draw tab."""
    return f'<a href="{link(digit, seed, steps, guidance)}">{picture(images.png(pixels), named(digit))}</a>'


def sheet_html(cells: str, columns: int, files: str = "") -> str:
    """The cells of a sheet in a grid, and below it the files to keep, once there are any."""
    grid = f"grid-template-columns: repeat({columns}, minmax(0, 1fr))"
    return f'<div class="sheet"><div class="cells" style="{grid}">{cells}</div>{files}</div>'


def files_html(pixels: torch.Tensor, labels: torch.Tensor, columns: int) -> str:
    """A sheet `[N, 28, 28]` as a picture and as a data set."""
    sheet, data_set = io.BytesIO(), io.BytesIO()
    generate.save(sheet, "png", pixels, labels, columns)
    generate.save(data_set, "npz", pixels, labels, columns)
    return (
        f'<p><a download="digits.png" href="{uri(sheet.getvalue())}">Save picture</a> '
        f'<a download="digits.npz" href="{uri(data_set.getvalue(), "application/zip")}">Save data set (.npz)</a></p>'
    )
