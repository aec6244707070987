"""Draw docs/pictures/mediators.png: for each mediator, the values that are restored, held and recomputed.

python docs/draw_mediators.py
"""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Patch, Rectangle

TOKENS, LAYERS = ("The*", "Eiffel*", "Tower*", "is", "in"), 7
TOKEN, LAYER, WINDOW = 2, 2, 4
COLOURS = {"clean": "#1b9e77", "anew": "#b7e4d3", "corrupted": "#f4b6a6", "held": "#b2182b"}
MEANING = {
    "clean": "restored to the clean value",
    "anew": "recomputed from it",
    "corrupted": "as in the corrupted run",
    "held": "held at the corrupted value",
}
TITLES = {
    "hidden": "hidden: output of one layer",
    "attn_severed": "attn_severed: the same, with the token's\nlater attention outputs held",
    "mlp_severed": "mlp_severed: the same, with the token's\nlater MLP outputs held",
    "attn_window": f"attn_window: attention outputs\nof {WINDOW} layers around a layer",
    "mlp_window": f"mlp_window: MLP outputs\nof {WINDOW} layers around a layer",
}


def kind_of(mediator: str, part: str, token: int, layer: int) -> str:
    """Return the key of COLOURS for one part (``attn``, ``mlp``, or ``state``, the output) of a layer at a token."""
    window = range(LAYER - WINDOW // 2, LAYER + WINDOW // 2)
    if mediator.endswith("window"):
        first = window.start
        if token == TOKEN and layer in window and part == mediator.removesuffix("_window"):
            return "clean"
        later = layer > first or (layer == first and part != "attn")
        mine = later if mediator == "attn_window" else layer > first or (layer == first and part == "state")
        return "anew" if (token == TOKEN and mine) or (token > TOKEN and layer > first) else "corrupted"
    if (token, layer, part) == (TOKEN, LAYER, "state"):
        return "clean"
    if layer <= LAYER or token < TOKEN:
        return "corrupted"
    return "held" if token == TOKEN and part == mediator.removesuffix("_severed") else "anew"


def draw(axes: Axes, mediator: str) -> None:
    """Draw one mediator: tokens as rows, layers as columns; each cell shows attention, MLP and layer output."""
    for token in range(len(TOKENS)):
        axes.plot([-0.6, LAYERS - 0.3], [token, token], color="0.8", linewidth=0.8, zorder=0)
        for layer in range(LAYERS):
            for part, x in (("attn", -0.3), ("mlp", 0.0), ("state", 0.3)):
                colour = COLOURS[kind_of(mediator, part, token, layer)]
                style = {"facecolor": colour, "edgecolor": "0.35", "linewidth": 0.5}
                if part == "state":
                    axes.add_patch(Circle((layer + x, token), 0.13, **style))
                else:
                    axes.add_patch(Rectangle((layer + x - 0.11, token - 0.3), 0.22, 0.6, **style))
    axes.set(xlim=(-0.6, LAYERS - 0.4), ylim=(len(TOKENS) - 0.4, -0.6), xticks=range(LAYERS), xlabel="layer")
    axes.set_yticks(range(len(TOKENS)), TOKENS)
    axes.tick_params(length=0)
    axes.set_title(TITLES[mediator], fontsize=9)
    for side in axes.spines.values():
        side.set_visible(False)


def main() -> None:
    """Write the picture."""
    figure, grid = plt.subplots(2, 3, figsize=(11, 5.6), layout="constrained")
    for axes, mediator in zip(grid.flat, TITLES, strict=False):
        draw(axes, mediator)
    legend = grid.flat[-1]
    legend.axis("off")
    patches = [Patch(facecolor=COLOURS[name], edgecolor="0.35", label=text) for name, text in MEANING.items()]
    text = "In each cell: attention, MLP, layer output.\nTokens with noise are marked *."
    legend.legend(handles=patches, loc="center", frameon=False, title=text, alignment="left")
    figure.savefig(Path(__file__).parent / "pictures" / "mediators.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
