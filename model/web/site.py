"""Export the static page to a folder: checked weights, the page, its engine, and a picture for link previews.

Code and weights are in folders named by a hash of their content. A browser's cached copy is therefore never stale, and
an unchanged folder stays cached after a new export.
"""

import hashlib
import json
import re
import shutil
from dataclasses import asdict, replace
from html import escape
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open

from model import flow, images, sampling, weights
from model.common import replacing_folder, sha256
from model.dit import DiT
from model.page import html as words
from model.page.studio import MAX_SHEET, START

HERE = Path(__file__).parent
INDEX, SERVICE_WORKER, PICTURE, ICON, LICENSE = "index.html", "sw.js", "picture.png", "icon.png", "LICENSE"
SHARED = ("elements.css", "forms.css", "files.js", "film.js", "forms.js", "sheet.js", "why.css", "why.js")  # of page/
CODE, WEIGHTS = "code-", "weights-"  # folder names, followed by twelve digits of a hash of the content
PART = f"({CODE}|{WEIGHTS})[0-9a-f]{{12}}"
MOMENTS = (1, 0.75, 0.5, 0.25, 0)  # times of the rows of the picture for link previews


def export(where: str | None, folder: Path, address: str = "") -> weights.Weights:
    """Write the page that draws with the weights `where` (as in `weights.load`) to `folder`, and return them.

    `address` is the URL of the page; link previews need it for their picture.
    Raises ValueError or OSError, with a one-sentence message, for weights that cannot be loaded, are not in float16 or
    belong to an ablation, and for a folder that holds anything else; the folder is then left unchanged.
    """
    folder = Path(folder).resolve()
    if address and not re.fullmatch(r"https?://\S+", address):
        raise ValueError(f"the address of the page must begin with https:// or http://, not {address}")
    if not replaceable(folder):
        raise FileExistsError(f"{folder} contains files not from an exported page; choose another folder, or empty it")
    loaded = weights.load(where).alone()
    if not loaded.network.qk_norm or loaded.network.predicts_image:
        raise ValueError("the static page only supports networks with QK-norm that predict the velocity")
    with replacing_folder(folder) as new:
        new.mkdir(parents=True)
        write(loaded, new, address)
    return loaded


def replaceable(folder: Path) -> bool:
    """Whether a folder is missing, empty, or an earlier export without added files."""
    if not folder.is_dir():
        return not folder.exists()
    names = {path.name for path in folder.iterdir()}
    parts = {name for name in names if re.fullmatch(PART, name)}
    return not names or (len(parts) == 2 and names - parts == {INDEX, SERVICE_WORKER, PICTURE, ICON, LICENSE})


def write(loaded: weights.Weights, folder: Path, address: str) -> None:
    """Write all files of the page into an empty folder."""
    kept, code = write_weights(loaded, folder), write_code(folder)
    picture(loaded.network, loaded.sampling).save(folder / PICTURE, optimize=True)
    icon(loaded.network, loaded.sampling).save(folder / ICON, optimize=True)
    shutil.copyfile(HERE.parent.parent / LICENSE, folder / LICENSE)
    address = f"{address.rstrip('/')}/" if address else ""
    filled = {
        "code": code.name,
        "picture": escape(address + PICTURE),
        "address": f'<meta property="og:url" content="{escape(address)}">' if address else "",
        "title": words.TITLE,
        "steps": words.section(*words.steps_of(loaded.network.kind, compared=False)),
        **{name: words.section(*getattr(words, name.upper())) for name in ("number", "sheet")},
        "guidance": words.GUIDANCE,
        "settings": json.dumps(settings(loaded, kept.name), ensure_ascii=False).replace("<", "\\u003c"),
    }
    index = (HERE / INDEX).read_text(encoding="utf-8")
    for name, text in filled.items():
        index = index.replace(f"{{{{{name}}}}}", text)
    (folder / INDEX).write_text(index, encoding="utf-8")
    names = [f"{part.name}/{path.name}" for part in (code, kept) for path in sorted(part.iterdir())]
    script = (HERE / SERVICE_WORKER).read_text(encoding="utf-8")
    script = script.replace("const FILES = [];", f"const FILES = {json.dumps([*names, ICON])};")
    (folder / SERVICE_WORKER).write_text(script, encoding="utf-8")


def write_weights(loaded: weights.Weights, folder: Path) -> Path:
    """Copy the tensors and write the JSON files that the engine reads; returns the new folder of weights."""
    source = loaded.folder
    with safe_open(source / weights.TENSORS, "pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    if kinds != {"F16"}:
        raise ValueError(
            f"{source / weights.TENSORS} contains {', '.join(sorted(kinds))}; the static page only supports float16"
        )
    digest = sha256(source / weights.TENSORS)
    kept = folder / f"{WEIGHTS}{digest[:12]}"
    kept.mkdir()
    shutil.copyfile(source / weights.TENSORS, kept / weights.TENSORS)
    if sha256(kept / weights.TENSORS) != loaded.metrics.get("sha256", {}).get(weights.TENSORS, digest):
        raise ValueError(f"{source / weights.TENSORS} changed while it was read; try again")
    config = weights.read_json(source / weights.CONFIG)
    texts = {
        weights.CONFIG: config,
        weights.SAMPLING: asdict(loaded.sampling),
        weights.METRICS: {"sha256": {weights.TENSORS: digest, "config": weights.digest(config)}},
    }
    for name, content in texts.items():
        (kept / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return kept


def write_code(folder: Path) -> Path:
    """Copy scripts, styles and engine; returns their new folder."""
    own = [path for kind in ("js", "css", "wasm") for path in HERE.glob(f"*.{kind}") if path.name != SERVICE_WORKER]
    sources = own + [HERE.parent / "page" / name for name in SHARED]
    files = {path.name: path.read_bytes() for path in sources}
    listing = "".join(f"{hashlib.sha256(content).hexdigest()} {name}\n" for name, content in sorted(files.items()))
    code = folder / f"{CODE}{hashlib.sha256(listing.encode()).hexdigest()[:12]}"
    code.mkdir()
    for name, content in files.items():
        (code / name).write_bytes(content)
    return code


def settings(loaded: weights.Weights, folder: str) -> dict:
    """The settings of the script: classes, ranges, the initial digit, and the folder of the weights."""
    return {
        "kind": loaded.network.kind,
        "classes": loaded.network.class_names,
        "numerals": images.CLASSES[:10],
        "start": START,
        "pixels": [loaded.network.pixel_mean, loaded.network.pixel_std],
        "sampling": asdict(loaded.sampling),
        "most": {
            "steps": sampling.MAX_STEPS,
            "guidance": sampling.MAX_GUIDANCE,
            "seed": sampling.MAX_SEED,
            "number": sampling.MAX_NUMBER,
            "sheet": MAX_SHEET,
        },
        "stepCounts": sampling.STEP_COUNTS,
        "weights": folder,
        "source": loaded.source if "@" in loaded.source else "",  # on the Hub
    }


def picture(network: DiT, how: sampling.SamplingConfig) -> Image.Image:
    """The picture for link previews, 1200 × 630: ten digits, each a column from its noise to the digit."""
    labels, how = torch.arange(10) % network.null_label, replace(how, steps=8)
    times = flow.time_grid(how.steps, how.time_shift)
    path = list(sampling.states(network, labels, range(START["seed"], START["seed"] + 10), how))
    rows = [path[min(range(len(path)), key=lambda i: abs(times[i] - t))].x for t in MOMENTS]
    pixels = images.to_pixels(torch.cat(rows), network.pixel_mean, network.pixel_std)
    tiles, framed = images.sheet(pixels, 10, scale=4, gap=2, background=24), Image.new("L", (1200, 630), 24)
    framed.paste(tiles, ((1200 - tiles.width) // 2, (630 - tiles.height) // 2))
    return framed


def icon(network: DiT, how: sampling.SamplingConfig) -> Image.Image:
    """The initial digit, 196 × 196, as the icon of the browser's tab."""
    name, names = START["digit"], network.class_names
    label = torch.tensor([names.index(name) if name in names else 0])
    return Image.fromarray(images.enlarge(next(sampling.draw(network, label, START["seed"], how))[0], 7))
