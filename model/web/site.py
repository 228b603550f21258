"""The static page as a folder: checked weights, the page and its engine, and a picture for links.

Everything but `index.html`, the service worker and the pictures lies in folders named by their content. Whatever
a browser has kept of them can therefore never be out of date, and a new export leaves what did not change in its cache.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from html import escape
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open

from model import flow, images, page, sampling, weights
from model.common import replacing_folder, sha256
from model.dit import DiT

HERE = Path(__file__).parent
SHARED = ("elements.css", "files.js", "film.js", "sheet.js")  # of the Gradio page, in model/page/
ENGINE = ("dit.js", "flow.js", "noise.js", "weights.js", "worker.js", "kernels.wasm", "kernels-relaxed.wasm")
OWN = ("site.css", "site.js")
INDEX, SERVICE_WORKER, PICTURE, ICON, LICENSE = "index.html", "sw.js", "picture.png", "icon.png", "LICENSE"
CODE, WEIGHTS = "code-", "weights-"  # folders, followed by the hash of their content
MARK = '<meta name="generator" content="model.export">'  # of an index.html that was written here
MEMORY = 2**30  # bytes that the engine may use
PICTURE_ROWS = 5  # moments of the picture for links


def export(where: str | None, folder: Path, address: str = "") -> weights.Weights:
    """Write the page that draws with the weights `where` (as in `weights.load`) to `folder`, and return them.

    `address` is where the page will be found; previews of links need it for their picture.
    Raises ValueError or OSError, in one sentence, for weights that cannot be loaded or that the engine cannot use,
    and for a folder with something else in it.
    """
    folder = Path(folder).resolve()
    if not replaceable(folder):
        raise FileExistsError(
            f"{folder} holds something other than an exported page; choose another folder, or empty it"
        )
    loaded = weights.load(where)
    refuse(loaded, source_folder(loaded) / weights.TENSORS)
    with replacing_folder(folder) as new:
        new.mkdir(parents=True)
        write(loaded, new, address)
    return loaded


def replaceable(folder: Path) -> bool:
    """Whether nothing is lost by replacing this folder: it is missing, empty or an earlier export."""
    if not folder.is_dir():
        return not folder.exists()
    index = folder / INDEX
    return not any(folder.iterdir()) or (
        index.is_file() and MARK in index.read_text(encoding="utf-8", errors="replace")
    )


def source_folder(loaded: weights.Weights) -> Path:
    """The folder that weights were read from."""
    if loaded.source == "bundled":
        return weights.BUNDLED
    return Path(loaded.source) if Path(loaded.source).is_dir() else weights.download(loaded.source)[0]


def refuse(loaded: weights.Weights, tensors: Path) -> None:
    """Raise ValueError for weights that are right, but that the engine in the browser cannot draw with."""
    network = loaded.network
    if network.patch > 1 and network.patch**2 % 4:
        raise ValueError(f"the page cannot draw with patches of {network.patch}, only with 1 or an even number")
    with safe_open(tensors, "pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    if kinds != {"F16"}:
        raise ValueError(f"{tensors} must be in float16 for the page, not {', '.join(sorted(kinds))}")


def write(loaded: weights.Weights, folder: Path, address: str) -> None:
    """Write all files of the page into an empty folder."""
    source, network = source_folder(loaded), loaded.network
    tensors = source / weights.TENSORS
    digest = sha256(tensors)
    expected = loaded.metrics.get("sha256", {}).get(weights.TENSORS, digest)
    kept = folder / f"{WEIGHTS}{digest[:12]}"
    kept.mkdir()
    shutil.copyfile(tensors, kept / weights.TENSORS)
    if sha256(kept / weights.TENSORS) != expected:
        raise ValueError(f"{tensors} has changed while it was read; try again")
    config = weights.read_json(source / weights.CONFIG)
    texts = {
        weights.CONFIG: {name: value for name, value in config.items() if name not in weights.MOVED},
        weights.SAMPLING: asdict(loaded.sampling),
        weights.METRICS: {"sha256": {weights.TENSORS: digest}},
    }
    for name, content in texts.items():
        (kept / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    files = {name: (HERE / name).read_bytes() for name in (*ENGINE, *OWN)}
    files |= {name: (HERE.parent / "page" / name).read_bytes() for name in SHARED}
    code = folder / f"{CODE}{digest_of(files)}"
    code.mkdir()
    for name, content in files.items():
        (code / name).write_bytes(content)

    picture(network, loaded.sampling).save(folder / PICTURE, optimize=True)
    icon(network, loaded.sampling).save(folder / ICON, optimize=True)
    shutil.copyfile(HERE.parent.parent / LICENSE, folder / LICENSE)
    filled = {
        "mark": MARK,
        "code": code.name,
        "picture": escape(address.rstrip("/") + "/" * bool(address) + PICTURE),
        "address": f'<meta property="og:url" content="{escape(address)}">' if address else "",
        "settings": json.dumps(settings(loaded, kept), ensure_ascii=False).replace("<", "\\u003c"),
    }
    index = (HERE / INDEX).read_text(encoding="utf-8")
    for name, text in filled.items():
        index = index.replace(f"{{{{{name}}}}}", text)
    (folder / INDEX).write_text(index, encoding="utf-8")
    names = [path.relative_to(folder).as_posix() for part in (code, kept) for path in sorted(part.iterdir())]
    script = (HERE / SERVICE_WORKER).read_text(encoding="utf-8")
    script = script.replace("const FILES = [];", f"const FILES = {json.dumps([*names, ICON])};")
    (folder / SERVICE_WORKER).write_text(script, encoding="utf-8")


def digest_of(files: dict[str, bytes]) -> str:
    """One short hash of several files."""
    listing = "".join(f"{hashlib.sha256(content).hexdigest()} {name}\n" for name, content in sorted(files.items()))
    return hashlib.sha256(listing.encode()).hexdigest()[:12]


def settings(loaded: weights.Weights, kept: Path) -> dict:
    """What the script has to know: classes, ranges, what to begin with, and where the weights are."""
    names = loaded.network.class_names
    return {
        "classes": names,
        "sampling": asdict(loaded.sampling),
        "start": {**page.START, "digit": page.START["digit"] if page.START["digit"] in names else names[0]},
        "most": {
            "steps": sampling.MAX_STEPS,
            "guidance": sampling.MAX_GUIDANCE,
            "seed": sampling.MAX_SEED,
            "number": sampling.MAX_NUMBER,
            "sheet": page.MAX_SHEET,
        },
        "stepCounts": sampling.STEP_COUNTS,
        "numerals": images.CLASSES[:10],
        "weights": kept.name,
        "source": loaded.source if "@" in loaded.source else "",  # of the Hub
    }


def picture(network: DiT, how: sampling.SamplingConfig) -> Image.Image:
    """The picture for links, 1200 × 630: ten digits, each a column that runs from its noise to the digit."""
    labels, how = torch.arange(10) % network.null_label, replace(how, steps=8)
    times = flow.time_grid(how.steps, how.time_shift)
    moments = [min(range(len(times)), key=lambda i: abs(times[i] - t)) for t in (1, 0.75, 0.5, 0.25, 0)]
    x = [state.x for state in sampling.states(network, labels, range(page.START["seed"], page.START["seed"] + 10), how)]
    rows = torch.cat([images.to_pixels(x[i], network.pixel_mean, network.pixel_std) for i in moments])
    tiles = images.sheet(rows, 10, scale=4, gap=2, background=24)
    framed = Image.new("L", (1200, 630), 24)
    framed.paste(tiles, ((1200 - tiles.width) // 2, (630 - tiles.height) // 2))
    return framed


def icon(network: DiT, how: sampling.SamplingConfig) -> Image.Image:
    """The digit that the page begins with, 196 × 196, for the browser's tab."""
    name, names = page.START["digit"], network.class_names
    label = torch.tensor([names.index(name) if name in names else 0])
    pixels = next(sampling.draw(network, label, page.START["seed"], how))
    return Image.fromarray(images.enlarge(pixels[0], 7))
