"""The picture of the demo: how both runs learnt, and what the online one knows."""

import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ._demo_training import Digits, Run

COLOURS = ("#c8553d", "#2f4b7c")
EXAMPLES = 5


def draw(out: pathlib.Path, digits: "Digits", online: "Run", bptt: "Run") -> None:
    """Write a PNG of loss curves, test accuracy, confusion matrix, and certainty growing row by row.

    Parameters
    ----------
    out : pathlib.Path
        Its folder is made where it does not exist.
    digits : Digits
    online, bptt : Run
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(14, 8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        "A recurrent network learns handwritten digits online, one row of pixels per time step", fontsize=15
    )
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.45, 1))
    losses, accuracies, confusion = top.subplots(1, 3, width_ratios=(1.25, 1.25, 1))
    _draw_losses(losses, online, bptt)
    _draw_accuracies(accuracies, online, bptt)
    _draw_confusion(confusion, digits, online)
    _draw_examples(bottom, digits, online)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def _draw_losses(axes: Any, *runs: "Run") -> None:
    for run, colour in zip(runs, COLOURS, strict=True):
        width = min(20, len(run.losses))
        smooth = np.convolve(run.losses, np.ones(width) / width, mode="valid")
        axes.plot(run.losses, color=colour, alpha=0.2, linewidth=0.7)
        axes.plot(np.arange(width - 1, len(run.losses)), smooth, color=colour, label=run.name)
    axes.set(title="Training loss", xlabel="update", ylabel="cross-entropy", yscale="log")
    axes.legend(frameon=False)


def _draw_accuracies(axes: Any, *runs: "Run") -> None:
    for run, colour in zip(runs, COLOURS, strict=True):
        epochs = np.arange(1, len(run.accuracies) + 1)
        axes.plot(epochs, 100 * run.accuracies, color=colour, label=f"{run.name}: {run.accuracy:.1%}")
    axes.set(title="Accuracy on digits never seen, after the last row", xlabel="epoch", ylabel="%")
    axes.legend(frameon=False, loc="lower right")


def _draw_confusion(axes: Any, digits: "Digits", run: "Run") -> None:
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (digits.test_labels, run.logits[-1].argmax(-1)), 1)
    axes.imshow(np.sqrt(counts), cmap="Oranges")
    for (true, named), count in np.ndenumerate(counts):
        if count:
            colour = "white" if count > counts.max() / 2 else "black"
            axes.text(named, true, count, ha="center", va="center", fontsize=8, color=colour)
    axes.set(title="Learnt online: confusion", xlabel="named", ylabel="true")
    axes.set(xticks=range(10), yticks=range(10))


def _draw_examples(figure: Any, digits: "Digits", run: "Run") -> None:
    """Beside each digit, row by row, the probability of every class once that row has been read."""
    chances = np.exp(run.logits - run.logits.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    figure.suptitle("Learnt online: each row read makes the network surer of the digit (darker is likelier)")
    panels = figure.subplots(1, 2 * EXAMPLES, width_ratios=(1, 1.25) * EXAMPLES)
    for picture, belief, pick in zip(panels[::2], panels[1::2], _typical(digits, run), strict=True):
        picture.imshow(digits.test_rows[:, pick], cmap="gray_r", aspect="auto")
        picture.set(title=f"a {digits.test_labels[pick]}", xticks=[], yticks=range(8), ylabel="row")
        belief.imshow(chances[:, pick], cmap="Oranges", vmin=0, vmax=1, aspect="auto")
        belief.set(title=f"named {run.logits[-1, pick].argmax()}", xlabel="class")
        belief.set(xticks=range(10), yticks=[])
        belief.tick_params(axis="x", labelsize=8)


def _typical(digits: "Digits", run: "Run") -> list[int]:
    """Test digits of different classes, spread over the ten, and one that is misread where there is one."""
    named = run.logits[-1].argmax(-1)
    wrong = np.flatnonzero(named != digits.test_labels)[:1]
    right = [np.flatnonzero((digits.test_labels == c) & (named == c)) for c in (0, 3, 4, 6, 9, 1, 2, 5, 7, 8)]
    picks = [int(found[0]) for found in right if len(found)][: EXAMPLES - len(wrong)]
    return (picks + wrong.tolist() + list(range(EXAMPLES)))[:EXAMPLES]
