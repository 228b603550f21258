"""Command: the card of a folder of weights, from its metrics.json. `python -m training.card --repo USER/NAME`"""

import argparse
import re
import sys
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from model import weights
from model.command import sentence_on_error
from model.dit import DiT
from model.files import replacing

EULER = "Euler's method"  # the sampler of rows that name none

# figure, its name for a person, how it is written, the metric's type on the Hub
FIGURES = (
    ("fd_ratio", "FD ÷ floor", "{:.2f}", "fid"),
    ("fd_train", "FD to the training set", "{:.3f}", "fid"),
    ("fd_test", "FD to the test set", "{:.3f}", "fid"),
    ("kid", "KID to the training set", "{:.4f}", "kid"),
    ("precision", "precision", "{:.1%}", "precision"),
    ("recall", "recall", "{:.1%}", "recall"),
    ("density", "density", "{:.3f}", "density"),
    ("coverage", "coverage", "{:.1%}", "coverage"),
    ("accuracy", "class accuracy", "{:.2%}", "accuracy"),
    ("copies", "near copies of training images", "{:.2%}", "memorisation"),
    ("cas", "CAS", "{:.2%}", "accuracy"),
)
PICTURES = (
    ("samples.png", "Samples", "Unchosen samples, a column a class."),
    (
        "neighbours.png",
        "Nearest neighbours",
        "The two samples of each class nearest to the training set, each above its nearest training image.",
    ),
    ("steps.png", "Steps", "The figures over the steps of the sampler."),
    ("guidance.png", "Guidance", "The figures over the guidance scale."),
    ("shift.png", "Time shift", "The figures over the shift of the sampler's times towards the noise, for several numbers of steps."),
)


def cas_of(metrics: dict) -> dict | None:
    """The row of CAS that was drawn as the headline row was, if there is one."""
    same = ("steps", "guidance", "time_shift", "sampler", "sha256")
    wanted = metrics["evaluation"]["settings"]
    rows = [row for row in metrics.get("cas", []) if all(row["settings"].get(name) == wanted.get(name) for name in same)]
    return rows[-1] if rows else None


def drawn_by(metrics: dict, over: str) -> str:
    """The sampler of a sweep, by its newest row: one that differs from the headline in nothing else than what is swept over."""
    wanted = metrics.get("evaluation", {}).get("settings", {})
    fixed = {"steps", "guidance", "time_shift"} - ({over, "steps"} if over == "time_shift" else {over})
    rows = [row["settings"] for row in metrics.get("sweeps", []) if row["settings"].get(over) != wanted.get(over)]
    rows = [row for row in rows if all(row.get(name) == wanted.get(name) for name in fixed)]
    return f" Drawn by {rows[-1].get('sampler', EULER)}." if rows else ""


def figures_of(metrics: dict) -> tuple[dict, dict]:
    """The figures of the drawn digits and of the real ones beside them: the headline row, and CAS where it was measured."""
    row, cas = metrics["evaluation"], cas_of(metrics) or {"drawn": {}, "real": {}}
    return {**row["drawn"], **cas["drawn"]}, {**row["real"], **cas["real"]}


def results_table(metrics: dict) -> str:
    """The headline row as a Markdown table, drawn beside real digits; "" where nothing is measured yet."""
    if "evaluation" not in metrics:
        return ""
    drawn, real = figures_of(metrics)
    rows = [f"| {name} | {form.format(drawn[key])} | {form.format(real[key])} |" for key, name, form, _ in FIGURES if key in drawn]
    return "\n".join(["| figure | drawn | real |", "|---|---:|---:|", *rows])


def data_of(metrics: dict, repo: str) -> ModelCardData:
    """What the Hub reads: the front matter, with a result for each figure that names the extractor it was measured with."""
    results = []
    if "evaluation" in metrics:
        drawn, _ = figures_of(metrics)
        extractor = metrics["evaluation"]["settings"]["extractor"][:12]
        for key, name, _, kind in FIGURES:
            if key in drawn:
                results.append(
                    EvalResult(
                        task_type="unconditional-image-generation",
                        dataset_type="ylecun/mnist",
                        dataset_name="MNIST",
                        metric_type=kind,
                        metric_name=f"{name}, features of extractor.safetensors {extractor}",
                        metric_value=drawn[key],
                    )
                )
    return ModelCardData(
        model_name=repo.split("/")[-1] or "digits",
        library_name="pytorch",
        license="mit",
        pipeline_tag="unconditional-image-generation",
        datasets=["ylecun/mnist"] if metrics.get("training", {}).get("data", "mnist") == "mnist" else None,
        tags=["diffusion-transformer", "rectified-flow", "class-conditional", "mnist"],
        eval_results=results or None,
    )


def use(repo: str, code: str) -> str:
    where = f" --weights {repo}" if repo else ""
    return f"""## Use

```sh
git clone {code} digits
cd digits
pip install -r requirements.txt
python -m model.generate --labels 0-9 --count 100 --out digits.png{where}
python app.py{where}
```"""


def results(metrics: dict) -> str:
    row = metrics["evaluation"]
    settings, real, accuracy = row["settings"], row["real"], row["extractor_accuracy"]
    drawing = f"{settings['count']:,} digits"
    if settings["steps"]:
        drawing += (
            f", {settings['steps']} steps by {settings.get('sampler', EULER)}, guidance {settings['guidance']:g}, seed {settings['seed']}"
        )
    text = f"""## Results

{results_table(metrics)}

Measured on {drawing}, with the labels in the proportions of the training set. Real is as many test digits,
measured the same way against the training set (and, for the distance to the test set, as many training digits).

- **FD** is the Fréchet distance between 128 features, the channel means of the fourth convolution of a small classifier that ships
  with the code (`training/extractor.safetensors`, sha256 `{settings["extractor"][:12]}`, {accuracy:.2%} right on the real test set).
  It is no Inception FID and compares with no figure in other features. The **floor** is the distance of the real test digits;
  {settings["count"]:,} digits out of the training set itself are at {real["fd_train_subset"]:.3f}.
- **Precision, recall, density, coverage** use balls out to the fifth neighbour.
- **Class accuracy** is that classifier's verdict on the class asked for. More than on real digits means that the network
  draws clear digits more often than people write them.
- **Near copies** are nearer in pixels to a training image than 1 % of real test digits are.
"""
    if cas := cas_of(metrics):
        taught = f"{cas['settings']['count']:,}"
        text += f"- **CAS** is the accuracy on the real test set of a classifier that saw only {taught} drawn digits, or real ones.\n"
    if row["blank"]:
        levels = "; ".join(f"{name}: mean {flat['mean']:.2f}, spread {flat['spread']:.2f}, of 255" for name, flat in row["blank"].items())
        text += f"- The classes black and white are in none of these figures. Their pixels: {levels}.\n"
    return text + f"\n`{row['command']}`, commit `{row['commit']}`, on {row['device']}, torch {row['torch']}."


def training(metrics: dict, network: DiT) -> str:
    summary = metrics.get("training")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    text = f"""## Training

A Diffusion Transformer with a stream of its own for the class, {parameters / 1e6:.1f} million parameters, trained with rectified flow."""
    if summary:
        text += "\n" + recipe(summary)
    return text


def seen(summary: dict | None) -> str:
    """How much training weights had, the warm starts before it included."""
    if not summary:
        return "unknown training"
    images = 0
    while summary:
        images, summary = images + summary["images"], summary.get("before")
    return f"{images:,} images' training"


def recipe(summary: dict) -> str:
    """One training in words and its command, after the one that it started warm from, if there was one."""
    text = f"""{summary["epochs"]:g} passes over {summary["data"]} ({summary["images"]:,} images) in batches of {summary["batch"]},
learning rate {summary["lr"]:g}: {summary["hours"]:g} hours on {summary["device"]}, torch {summary["torch"]}, commit `{summary["commit"]}`.

```sh
{summary["command"]}
```"""
    if guide := summary.get("guide"):
        text += f"""

What it learned is not the velocity of the data but that of the weights that it started from, guided by weaker ones
(autoguidance, distilled): {guide["scale"]:g} times the way from a network of {seen(guide["training"])} to them, with the null class
as {guide["null"]:.0%} of that network's labels. So the guidance is in the weights, and a step asks the network once."""
    if blend := summary.get("blend"):
        kept = f"the weights lie {100 * blend['share']:g}% of the way from those that it started from\nto those that it ended with."
        if base := blend.get("base"):
            kept = f"{100 * blend['share']:g}% of it, added to the weights of another run from the same start:\n{recipe(base)}"
        text += f"""

Of what this run changed, a part was kept: {kept}

```sh
{blend["command"]}
```"""
    if before := summary.get("before"):
        return f"{recipe(before)}\n\nFrom those weights, as a warm start, another {text}"
    return text


LIMITS = """## Limits

It draws digits of 28 × 28 grey pixels like those of MNIST, and nothing else: the hands of American census staff and
high-school students around 1990.
Some samples are no clear digit, or another one than was asked for; the class accuracy says how many.
The figures judge sets of digits, not a single one, and only in the eyes of one small classifier.

## License

MIT."""


def card(folder: Path, repo: str = "", code: str = "") -> ModelCard:
    """The card of a folder of weights that is, or will be, the Hub repository `repo`; `code` is the address to clone the code from.

    Raises ValueError or OSError, in one sentence, for a folder that holds no whole weights.
    """
    if repo and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ValueError(f"--repo must be USER/NAME, not {repo!r}")
    network, metrics = weights.read(folder)
    over = {"steps.png": "steps", "guidance.png": "guidance", "shift.png": "time_shift"}
    shown = {
        name: f"## {title}\n\n![{text}]({name})\n\n{text}{drawn_by(metrics, over[name]) if name in over else ''}"
        for name, title, text in PICTURES
        if (folder / name).is_file()
    }
    parts = [
        "# Handwritten digits from a small Diffusion Transformer",
        "Class-conditional: ask for a digit from 0 to 9, or for an all black or all white image.",
        shown.pop("samples.png", ""),
        use(repo, code or f"https://huggingface.co/spaces/{repo or 'USER/NAME'}"),
        results(metrics) if "evaluation" in metrics else "",
        *shown.values(),
        training(metrics, network),
        LIMITS,
    ]
    body = "\n\n".join(part for part in parts if part)
    return ModelCard(f"---\n{data_of(metrics, repo).to_yaml()}\n---\n\n{body}\n", ignore_metadata_errors=False)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.card", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=weights.BUNDLED, help="folder of the weights (default: the bundled ones)")
    parser.add_argument("--repo", default="", metavar="USER/NAME", help="the Hub repository of the weights")
    parser.add_argument("--code", default="", metavar="URL", help="where the code is cloned from (default: the Space of the same name)")
    options = parser.parse_args(argv)
    with sentence_on_error(parser):
        path = options.weights / "README.md"
        text = str(card(options.weights, options.repo, options.code))
        with replacing(path) as new:
            new.write_text(text)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
