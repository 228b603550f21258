"""Plots of runs and evaluations: previews, loss, samples, nearest neighbours, sweeps, loss against quality."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import mean

import torch
from PIL import Image

from model import images
from model.common import replacing

INK, PALE, BLUE = "#222222", "#8a8a8a", "#1f5fbf"
PANELS = (  # metric, title, direction, whether it is a share
    ("fd_ratio", "Fréchet distance ÷ floor", "lower is better", False),
    ("coverage", "coverage", "higher is better", True),
    ("accuracy", "class accuracy", "higher is better", True),
)
TICKS = {"steps": (1, 2, 4, 8, 16, 32), "guidance": (0, 0.5, 1, 1.5, 2), "time_shift": (1, 1.5, 2, 2.5)}
STYLE = {
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9.5,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
BLUES = ("#a9c7ee", "#6ea0dd", "#3f7fcd", BLUE, "#0f3a7a")  # darker for more steps


def samples(path: Path, pixels: torch.Tensor, labels: torch.Tensor, rows: int = 10) -> None:
    """The first `rows` digits of every class, uncurated, one column per class."""
    columns = []
    for label in range(10):
        found = pixels[labels == label][:rows]
        columns.append(torch.cat([found, found.new_zeros(rows - len(found), *found.shape[1:])]))
    with replacing(path) as new:
        images.sheet(torch.stack(columns, 1).flatten(0, 1), columns=10, scale=3).save(new)


def growth(path: Path, previews: list[Path]) -> None:
    """The previews of a run as a looping GIF of six seconds that pauses on the last; unreadable ones are skipped."""
    frames = []
    for preview in previews:
        with suppress(OSError, SyntaxError), Image.open(preview) as image:  # SyntaxError: a broken PNG
            frames.append(image.copy())
    if not frames:
        return
    each = max(60, round(6000 / len(frames)))
    with replacing(path) as new:
        frames[0].save(
            new, save_all=True, append_images=frames[1:], duration=[each] * (len(frames) - 1) + [2000], loop=0
        )


def moving_average(loss: torch.Tensor, half: int) -> torch.Tensor:
    """The centred mean over `half` values on either side, for all but the last `half` values.

    At the start, where the loss falls steeply, the window is narrower: an eighth of the values so far on either side.
    """
    reach = [min(half, i // 8) for i in range(len(loss) - half)]
    return torch.stack([loss[i - n : i + n + 1].mean() for i, n in enumerate(reach)])


def loss_curve(path: Path, rows: list[dict]) -> None:
    """The loss over the images seen: every line of metrics.jsonl, and a moving average over a fortieth of the run."""
    seen = torch.tensor([row["images"] for row in rows], dtype=torch.float64)
    loss = torch.tensor([row["loss"] for row in rows], dtype=torch.float64)
    mean = moving_average(loss, half=len(rows) // 80)
    settled = loss[len(loss) // 20 :]
    with plot(path, size=(7, 3.5)) as (_, axis):
        axis.plot(seen, loss, color=PALE, linewidth=0.6, alpha=0.6)
        axis.plot(seen[: len(mean)], mean, color=BLUE, linewidth=1.8)
        axis.set(xlabel="images seen", ylabel="loss", yscale="log", xlim=0)
        axis.set_ylim(0.98 * settled.min().item(), min(loss.max().item(), 2 * settled.median().item()) * 1.02)
        axis.yaxis.set_major_formatter("{x:.3g}")
        axis.yaxis.set_minor_formatter("{x:.3g}")
        axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g} M" if x >= 1e6 else f"{x / 1e3:g} k" if x else "0")
        axis.grid(color="#eeeeee", which="both")


def neighbours(
    path: Path, pixels: torch.Tensor, labels: torch.Tensor, distance: torch.Tensor, nearest: torch.Tensor
) -> None:
    """The two drawn digits of each class nearest to the training set, each above its nearest training image."""
    with plot(path, rows=2, columns=10, size=(10, 5)) as (figure, grid):
        for label in range(10):
            (of_class,) = (labels == label).nonzero(as_tuple=True)
            for axis, i in zip(grid[:, label], of_class[distance[of_class].argsort()].tolist(), strict=False):
                gap = pixels.new_full((1, images.SIZE), 128)
                axis.imshow(torch.cat([pixels[i], gap, nearest[i]]).numpy(), cmap="gray", vmin=0, vmax=255)
                axis.set_title(f"{distance[i]:.2f}", fontsize=9)
        for axis in grid.flat:
            axis.axis("off")
        figure.suptitle("The drawn digits nearest to the training set, each above its nearest training image")


def sweep(path: Path, over: str, rows: list[dict]) -> None:
    """FD, coverage and accuracy over `steps`, `guidance`, or (one line per number of steps) `time_shift`.

    A dashed line marks the real test digits.
    """
    settings, lines = rows[0]["settings"], {}
    for row in rows:
        lines.setdefault(row["settings"]["steps"] if over == "time_shift" else None, []).append(row)
    fixed = f"{settings['steps']} steps" if over == "guidance" else f"guidance {settings['guidance']:g}"
    label = f"{over.replace('_', ' ')}  ({fixed}, {settings['count']:,} digits per point)"
    with plot(path, columns=len(PANELS), size=(13 if len(lines) > 1 else 12, 3.8)) as (figure, axes):
        for axis, (name, title, better, share) in zip(axes, PANELS, strict=True):
            for (steps, line), colour in zip(lines.items(), BLUES if len(lines) > 1 else (BLUE,), strict=False):
                points, values = [row["settings"][over] for row in line], [row["drawn"][name] for row in line]
                style = {"color": colour, "linewidth": 2, "marker": "o", "markersize": 5, "clip_on": False}
                axis.plot(points, values, label=f"{steps} steps", **style)
            real = rows[0]["real"][name]
            axis.axhline(real, color=PALE, linestyle=(0, (5, 4)), linewidth=1.2)
            offset = {"xytext": (4, 4 if share else -4), "textcoords": "offset points"}
            where = {"xycoords": axis.get_yaxis_transform(), "va": "bottom" if share else "top"}
            axis.annotate("real digits", (0.02, real), fontsize=9, color=PALE, **where, **offset)
            axis.set_title(title, loc="left", fontsize=12, fontweight="bold")
            axis.set_title(better, loc="right", fontsize=9, color=PALE)
            axis.set_xlabel(label)
            if over == "steps":
                axis.set_xscale("log", base=2)
            axis.set_xticks(TICKS[over], map(str, TICKS[over]))
            if share:
                axis.set_ylim(top=1 + 0.06 * (1 - axis.get_ylim()[0]))
                axis.yaxis.set_major_formatter("{x:.4g}")
            else:
                axis.set_yscale("log", subs=[2, 5])
                bottom, top = axis.get_ylim()
                axis.set_ylim(bottom=min(bottom, real * (real / top) ** 0.1))  # room for the label
                axis.yaxis.set_major_formatter("{x:g}")
                axis.yaxis.set_minor_formatter("{x:g}" if top / bottom < 1000 else "")
        if len(lines) > 1:
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)


def loss_and_quality(
    path: Path, runs: dict[str, list[tuple[float, float]]], own_loss: set[str], note: str = ""
) -> None:
    """Loss against FD ÷ floor: each run is a thin line, with its name at the end.

    Runs in `own_loss` are hollow: their losses measure something else and are not comparable with others.
    """
    from matplotlib.ticker import LogLocator, NullLocator  # needed only to measure

    with plot(path, size=(9, 5.5)) as (_, axis):
        for name, points in runs.items():
            hollow = name in own_loss
            colour = PALE if hollow else BLUE
            axis.plot(*zip(*points, strict=True), color=colour, linewidth=0.7, marker=".", markersize=3, alpha=0.6)
            axis.plot(*points[-1], "o", color=colour, markersize=5.5, markerfacecolor="white" if hollow else colour)
        axis.set(xlabel="training loss", xscale="log", yscale="log")
        axis.set_title("Fréchet distance ÷ floor", loc="left", fontsize=12, fontweight="bold")
        axis.set_title(f"hollow: losses not comparable   {note}", loc="right", fontsize=9, color=PALE)
        for direction in (axis.xaxis, axis.yaxis):
            direction.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            direction.set_major_formatter("{x:g}")
            direction.set_minor_locator(NullLocator())
        heights = spread(
            [axis.transAxes.inverted().transform(axis.transData.transform(run[-1]))[1] for run in runs.values()], 0.035
        )
        for (name, points), height in zip(runs.items(), heights, strict=True):
            axis.annotate(
                name,
                points[-1],
                (1.03, height),
                textcoords=axis.transAxes,
                va="center",
                fontsize=7.5,
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": PALE, "linewidth": 0.4, "relpos": (0, 0.5)},
            )


def spread(heights: list[float], apart: float) -> list[float]:
    """The nearest heights in the same order that are at least `apart`: isotonic regression by pooling neighbours."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    pools: list[list[float]] = []
    for place, i in enumerate(order):
        pools.append([heights[i] - place * apart])
        while len(pools) > 1 and mean(pools[-2]) > mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    moved = [mean(pool) + apart * place for place, pool in enumerate(pool for pool in pools for _ in pool)]
    return [moved[order.index(i)] for i in range(len(heights))]


@contextmanager
def plot(path: Path, rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 3.5)) -> Iterator[tuple]:
    """A matplotlib figure and its axes, written to `path` when the block ends."""
    import matplotlib.pyplot as plt  # needed only to measure

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=size)
        yield figure, axes
        with replacing(path) as new:
            figure.savefig(new)
        plt.close(figure)
