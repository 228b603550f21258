"""The model card of a folder of weights, written from its metrics.json."""

import re
import shlex
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from model import check, weights
from model.dit import DiT
from model.flow_map import FlowMap
from model.images import CLASSES

# metric, display name, format, metric type on the Hub
FIGURES = (
    ("fd_ratio", "FD ÷ floor", "{:.2f}", "fid"),
    ("fd_train", "FD to the training set", "{:.3f}", "fid"),
    ("fd_test", "FD to the test set", "{:.3f}", "fid"),
    ("precision", "precision", "{:.1%}", "precision"),
    ("recall", "recall", "{:.1%}", "recall"),
    ("density", "density", "{:.3f}", "density"),
    ("coverage", "coverage", "{:.1%}", "coverage"),
    ("accuracy", "class accuracy", "{:.2%}", "accuracy"),
    ("copies", "near copies of training images", "{:.2%}", "memorisation"),
    ("cas", "CAS", "{:.2%}", "accuracy"),
)
PICTURES = (
    ("samples.png", "Samples", "Uncurated samples, one column per class."),
    (
        "neighbours.png",
        "Nearest neighbours",
        "For each class, the two samples nearest to the training set, each above its nearest training image.",
    ),
    ("steps.png", "Steps", "Metrics against the number of sampler steps."),
    ("guidance.png", "Guidance", "Metrics against the guidance scale."),
    (
        "shift.png",
        "Time shift",
        "Metrics against the shift of the time grid towards the noise, for several numbers of steps.",
    ),
)


def cas_of(metrics: dict) -> dict | None:
    """The CAS row drawn with the settings of the headline row, if there is one."""
    same = ("steps", "guidance", "time_shift", "sampler", "sha256")
    wanted = metrics["evaluation"]["settings"]
    rows = [
        row for row in metrics.get("cas", []) if all(row["settings"].get(name) == wanted.get(name) for name in same)
    ]
    return rows[-1] if rows else None


def figures_of(metrics: dict) -> tuple[dict, dict]:
    """The metrics of the headline row, drawn and real, with CAS where it was measured."""
    row, cas = metrics["evaluation"], cas_of(metrics) or {"drawn": {}, "real": {}}
    return {**row["drawn"], **cas["drawn"]}, {**row["real"], **cas["real"]}


@check.complete(weights.METRICS)
def results_table(metrics: dict) -> str:
    """The headline row as a Markdown table, for drawn and real digits; "" if there is none."""
    if "evaluation" not in metrics:
        return ""
    drawn, real = figures_of(metrics)
    rows = [
        f"| {name} | {form.format(drawn[key])} | {form.format(real[key])} |"
        for key, name, form, _ in FIGURES
        if key in drawn
    ]
    return "\n".join(["| metric | drawn | real |", "|---|---:|---:|", *rows])


def data_of(metrics: dict, repo: str, network: DiT) -> ModelCardData:
    """The front matter for the Hub, with one result per metric that names the extractor it was measured with."""
    tags = ["diffusion-transformer", "rectified-flow", *["flow-map"] * isinstance(network, FlowMap)]
    results, of_mnist = [], metrics.get("training", {}).get("data", "mnist") == "mnist"
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
        datasets=["ylecun/mnist"] if of_mnist else None,
        tags=[*tags, "class-conditional", *["mnist"] * of_mnist],
        eval_results=results or None,
    )


def use(repo: str, code: str, options: str) -> str:
    """`options` of the command that draws digits."""
    where = f" --weights {repo}" if repo else ""
    return f"""## Use

```sh
git clone {code} digits
cd digits
pip install -r requirements.txt
python -m model.generate {options} --count 100 --out digits.png{where}
python app.py{where}
```"""


def results(metrics: dict) -> str:
    row = metrics["evaluation"]
    settings, real, accuracy = row["settings"], row["real"], row["extractor_accuracy"]
    drawing = f"{settings['count']:,} digits"
    if settings["steps"]:
        drawing += f", {settings['steps']} steps ({settings['sampler']}), time shift {settings['time_shift']:g}"
        drawing += f", guidance {settings['guidance']:g}, seed {settings['seed']}"
    text = f"""## Results

{results_table(metrics)}

Measured on {drawing},
with the class proportions of the training set. The *real* column shows the same number of test digits, measured the
same way against the training set (for the FD to the test set: the same number of training digits).

- **FD** is the Fréchet distance on 128 features of a small classifier that ships with the code
  (`extractor.safetensors`, sha256 `{settings["extractor"][:12]}`, {accuracy:.2%} accurate on the real test set).
  It is not Inception FID and cannot be compared with values from other features. The **floor** is the FD of the real
  test digits; {settings["count"]:,} digits from the training set itself have an FD of {real["fd_train_subset"]:.3f}.
- **Precision, recall, density and coverage** use k-nearest-neighbour balls with k = 5 in the same features.
- **Class accuracy** is how often that classifier predicts the requested class. A value above that of real digits means
  that the samples are less ambiguous than real handwriting.
- A **near copy** is closer to its nearest training image, in pixel space, than 99% of the real test digits are to
  theirs. In the *real* column, each half of the test set is judged by the threshold of the other half.
"""
    if cas := cas_of(metrics):
        taught = f"{cas['settings']['count']:,}"
        text += "- **CAS** is the accuracy on the real test set of a classifier trained only on drawn digits, "
        text += f"or only on real ones ({taught} each).\n"
    if row["blank"]:
        levels = "; ".join(
            f"{name}: mean {flat['mean']:.2f}, standard deviation {flat['spread']:.2f}"
            for name, flat in row["blank"].items()
        )
        text += f"- These metrics exclude the classes black and white. Their pixel values (0 to 255): {levels}.\n"
    return text + f"\nCommand: `{row['command']}`, commit `{row['commit']}`, on {row['device']}, torch {row['torch']}."


def training(metrics: dict, network: DiT) -> str:
    record, parameters = metrics.get("training"), sum(parameter.numel() for parameter in network.parameters())
    how = STAGES if isinstance(network, FlowMap) else "trained with rectified flow."
    text = f"""## Training

A Diffusion Transformer with {parameters / 1e6:.1f} million parameters and separate streams for image and class,
{how}"""
    return f"{text}\n\n{recipe(record)}" if record else text


STAGES = """trained in two stages. First, flow matching trained a network to predict the velocity from noise to image,
which needs many small steps for sampling. Then distillation turned it into a flow map, which jumps from any point on
the path to any later one in a single network call, with the guidance scale as an input."""


def teacher(repo: str) -> str:
    return f"""## Teacher

The velocity network that this flow map was distilled from is in the folder `{weights.TEACHER}/`. The page and
`model.generate` use it for {weights.TEACHER_FROM} or more steps. To use it alone:

```sh
hf download {repo or "USER/NAME"} --local-dir digits-weights
python app.py --weights digits-weights/{weights.TEACHER}
```"""


def recipe(record: dict) -> str:
    """A training record as text with its command, preceded by the record it was initialized from, if any."""
    hours = record["hours"]
    taken = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    text = f"""{record["epochs"]:g} passes over {record["data"]} ({record["images"]:,} images) in batches of
{record["batch"]}, peak learning rate {record["lr"]:g}: {taken} on {record["device"]}, torch {record["torch"]},
commit `{record["commit"]}`.

```sh
{record["command"]}
```

This is the command at that commit; later versions may have other flags."""
    if before := record.get("initialized_from"):
        how = "Distilled" if "training.distill" in record["command"] else "Initialized"
        return f"{recipe(before)}\n\n{how} from those weights: another {text}"
    return text


LIMITS = """## Limitations

The model is limited to 28 × 28 greyscale digits like those of MNIST: the handwriting of American census employees and
high-school students around 1990. Some samples are unclear or not the requested digit; see the class accuracy. The
metrics describe sets of digits, not single ones, and mostly rely on one small classifier.

## License

MIT."""


@check.complete(weights.METRICS)
def card(folder: Path, repo: str = "", code: str = "") -> ModelCard:
    """The model card of a folder of weights for the Hub repository `repo`; `code` is the URL to clone the code from.

    Raises ValueError or OSError, in one sentence, for a folder without valid weights.
    """
    if repo and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ValueError(f"--repo must be USER/NAME, not {repo!r}")
    loaded = weights.read(folder)
    metrics, names = loaded.metrics, loaded.network.class_names
    shown = {
        name: f"## {title}\n\n![{text}]({name})\n\n{text}"
        for name, title, text in PICTURES
        if (folder / name).is_file()
    }
    labels = "0-9" if names == CLASSES else ",".join(names[:10])
    steps = ""
    if isinstance(loaded.network, FlowMap) and "evaluation" in metrics:  # by default, the teacher may draw
        steps = f" --steps {min(metrics['evaluation']['settings']['steps'], weights.TEACHER_FROM - 1)}"
    parts = [
        f"# {'Handwritten digits' if names == CLASSES else 'Images'} from a small Diffusion Transformer",
        "Class-conditional: ask for a digit from 0 to 9, or for an all-black or all-white image."
        if names == CLASSES
        else f"Class-conditional: ask for one of {', '.join(names)}.",
        shown.pop("samples.png", ""),
        use(
            repo,
            code or f"https://huggingface.co/spaces/{repo or 'USER/NAME'}",
            f"--labels {shlex.quote(labels)}{steps}",
        ),
        results(metrics) if "evaluation" in metrics else "",
        *shown.values(),
        training(metrics, loaded.network),
        teacher(repo) if (folder / weights.TEACHER).is_dir() else "",
        LIMITS if names == CLASSES else "## License\n\nMIT.",
    ]
    body = "\n\n".join(part for part in parts if part)
    return ModelCard(
        f"---\n{data_of(metrics, repo, loaded.network).to_yaml()}\n---\n\n{body}\n", ignore_metadata_errors=False
    )
