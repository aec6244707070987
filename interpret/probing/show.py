"""What probes show: the logit lens, shares in a logit, attention heads, and neurons, each as heat maps.

Rows of a run and results of Python calls show the same: ``LensReadings(run.records())`` and ``logit_lens(...)``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interpret import drawing
from interpret.display.heatmaps import Band, Heading, Heatmap, Panel, plain_headings, readable, visible
from interpret.display.shown import Rows, Shown, check_input, grouped
from interpret.display.view import View
from interpret.errors import InputError
from interpret.finite import left_out, order
from interpret.probing.registry import LOGIT
from interpret.records import HeadView, LensReading, LensTraining, LogitShare, NeuronEffect

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLLOWED = "followed"
"""The ``continuation`` of a token that a Python call follows, which is neither target nor foil of a prompt."""
COLOURS = "colours and ranks"
MOST_NEURONS = 50
"""Number of neurons on a page; the table has all."""
OUTSIDE = -1
"""The layer of a component that is in no layer, and the head of one that is no head."""


# ---- The logit lens


class LensReadings(Rows[LensReading]):
    """Rows of the logit lens, such as those of a run."""

    record_type = LensReading

    def view(self) -> View:
        """Return what is shown: for each prompt the predictions after each layer."""
        prompts = grouped(self, lambda row: (row.name, row.lens))
        names = " and ".join(dict.fromkeys(row.lens for row in self))
        return View(
            title=f"{names.capitalize()} lens: what the model would say after each layer",
            unit="probability of the token, as the lens reads it from the state",
            panels=lambda: map(_lens_panel, prompts),
            n_panels=len(prompts),
            warning=left_out([row.probability for row in self], "probabilities", COLOURS),
        )


def _lens_panel(rows: Sequence[LensReading]) -> Panel:
    """Return the panel of one prompt."""
    states = sorted({(row.layer_idx, row.site == "resid_post") for row in rows})
    layers = plain_headings([f"{layer} output" if after else str(layer) for layer, after in states])
    positions = {row.token_idx: row.token for row in sorted(rows, key=lambda row: row.token_idx)}
    place = {state: number for number, state in enumerate(states)}

    def grid(title: str, columns: Sequence[Heading], chosen: Sequence[tuple[LensReading, int]], across: str) -> Heatmap:
        values = np.full((len(layers), len(columns)), np.nan)
        texts = [[""] * len(columns) for _ in layers]
        for row, column in chosen:
            line = place[row.layer_idx, row.site == "resid_post"]
            values[line, column], texts[line][column] = row.probability, _seen(row.prediction)
        return Heatmap(title, "layer", columns, [Band("", layers, values, texts=texts)], across=across)

    top = max((row.rank or 0 for row in rows if not row.continuation), default=0)
    grids = []
    if top and len(positions) > 1:
        at = {position: column for column, position in enumerate(positions)}
        best = [(row, at[row.token_idx]) for row in rows if row.rank == 1]
        columns = [Heading(visible(token), position) for position, token in positions.items()]
        grids.append(grid("Most likely next token after each layer", columns, best, "token"))
    elif top:
        ranked = [(row, row.rank - 1) for row in rows if row.rank is not None and row.rank <= top]
        (token,) = positions.values()
        title = f"Most likely tokens after “{readable(token)}”"
        grids.append(grid(title, plain_headings([f"rank {rank + 1}" for rank in range(top)]), ranked, "rank"))
    grids += _followed(rows, layers, place, positions)
    by = "" if rows[0].lens == LOGIT else f" (read by the {rows[0].lens} lens)"
    return Panel(readable(rows[0].prompt) + by, grids, name=rows[0].name, signed=False)


def _seen(token: str) -> str:
    """Return a token without its spaces, or with visible ones if it has nothing else; ``∅`` for no token."""
    return readable(token) or visible(token) or "∅"


def _followed(
    rows: Sequence[LensReading],
    layers: Sequence[Heading],
    place: dict[tuple[int, bool], int],
    positions: dict[int, str],
) -> list[Heatmap]:
    """Return a heat map of the probability of each followed token, layers by tokens."""
    at = {position: column for column, position in enumerate(positions)}
    columns = [Heading(visible(token), position) for position, token in positions.items()]
    grids = []
    for of_one in grouped([row for row in rows if row.continuation], lambda row: row.prediction_id):
        values = np.full((len(layers), len(columns)), np.nan)
        for row in of_one:
            values[place[row.layer_idx, row.site == "resid_post"], at[row.token_idx]] = row.probability
        role = "" if of_one[0].continuation == FOLLOWED else f" ({of_one[0].continuation})"
        title = f"P({_seen(of_one[0].prediction)}){role}"
        grids.append(Heatmap(title, "layer", columns, [Band("", layers, values)]))
    return grids


class LensTrainings(Rows[LensTraining]):
    """The loss of a tuned lens in training, such as the rows of a run of ``train_lens``."""

    record_type = LensTraining

    def view(self) -> View:
        """Return what is shown: the KL of each layer over the steps."""
        steps, layers = (sorted({getattr(row, name) for row in self}) for name in ("step", "layer_idx"))
        values = np.full((len(layers), len(steps)), np.nan)
        for row in self:
            values[layers.index(row.layer_idx), steps.index(row.step)] = row.kl
        names, columns = (plain_headings([str(number) for number in numbers]) for numbers in (layers, steps))
        grid = Heatmap("KL by layer and step", "layer", columns, [Band("", names, values)], across="step")
        panel = Panel("KL(model || lens) on the text of the training", [grid], name="training", signed=False)
        return View(
            title="Training of a tuned lens",
            unit="KL(model || lens) in nats per token",
            panels=lambda: iter([panel]),
            n_panels=1,
            warning=left_out([row.kl for row in self], "losses", COLOURS),
        )


class _Frame(pd.DataFrame, Shown):
    """A DataFrame that shows itself; its slices are ordinary DataFrames, and ``to_html`` is that of pandas."""

    def to_frame(self) -> pd.DataFrame:
        """Return an ordinary DataFrame with the same columns."""
        return pd.DataFrame(self)

    def _repr_html_(self) -> str:
        return Shown._repr_html_(self)


class LensFrame(_Frame):
    """The readings of ``logit_lens``: a DataFrame that shows itself."""

    _metadata = ["prompts", "followed", "lens"]  # noqa: RUF012 - pandas reads it: attributes that are no columns
    prompts: "Sequence[Sequence[str]]"
    """[B][T] texts of the tokens of each prompt, or their ids."""
    followed: "Sequence[int]"
    """Ids of the tokens whose probability is followed through the layers."""
    lens: str
    """Name of the lens: ``logit``, ``tuned`` or ``identity``."""

    def view(self) -> View:
        """Return what is shown: for each prompt the predictions after each layer."""
        last = int(self["layer"].max())
        return LensReadings(
            LensReading(
                name=f"prompt {row.prompt}",
                prompt="".join(self.prompts[row.prompt]),
                token_idx=row.position,
                token=self.prompts[row.prompt][row.position],
                site="resid_pre" if row.layer < last else "resid_post",
                layer_idx=min(row.layer, last - 1),
                rank=None if np.isnan(row.rank) else int(row.rank),
                prediction_id=row.token_id,
                prediction=row.token or str(row.token_id),
                logit=row.logit,
                probability=row.probability,
                continuation=FOLLOWED if row.token_id in self.followed else "",
                lens=self.lens,
                agrees=row.agrees,
                kl=row.kl,
            )
            for row in self.itertuples()
        ).view()


# ---- Shares in a logit


class LogitShares(Rows[LogitShare]):
    """Rows of direct logit attribution, such as those of a run."""

    record_type = LogitShare

    def view(self) -> View:
        """Return what is shown: for each prompt what heads and MLPs add to the logit."""
        prompts = grouped(self, lambda row: row.name)
        return View(
            title="Direct logit attribution: what each head and MLP adds to the logit",
            unit="share in the logit",
            panels=lambda: map(_shares_panel, prompts),
            n_panels=len(prompts),
            warning=left_out([row.share for row in self], "shares", COLOURS),
        )


def _shares_panel(rows: Sequence[LogitShare]) -> Panel:
    """Return the panel of one prompt: the difference to the foil if there is one, and the answer's logit."""
    answer, foil = readable(rows[0].answer), readable(rows[0].foil)
    total = sum(row.share for row in rows)
    kinds: list[tuple[str, Callable[[LogitShare], float]]] = [(f"logit({answer})", lambda row: row.share)]
    follows = f"{answer} (logit {total:.2f})".replace("-", "−")
    if rows[0].foil_share is not None:
        kinds.insert(0, (f"logit({answer}) − logit({foil})", lambda row: row.share - (row.foil_share or 0.0)))
        follows += f" rather than {foil}"
    grids = [grid for title, share in kinds for grid in _share_grids(rows, title, share)]
    return Panel(readable(rows[0].prompt), grids, follows, name=rows[0].name)


def _share_grids(rows: Sequence[LogitShare], title: str, share: Callable[[LogitShare], float]) -> list[Heatmap]:
    """Return a heat map of layers by heads and other components, and one of the components in no layer."""
    within = [row for row in rows if row.layer_idx != OUTSIDE]
    heads = sorted({row.head for row in within if row.head != OUTSIDE})
    others = list(dict.fromkeys(row.component for row in within if row.head == OUTSIDE))
    columns = [*map(str, heads), *others]
    at = {column: place for place, column in enumerate(columns)}
    values = np.full((max((row.layer_idx for row in within), default=-1) + 1, len(columns)), np.nan)
    for row in within:
        values[row.layer_idx, at[row.component if row.head == OUTSIDE else str(row.head)]] = share(row)
    names = [f"head {head}" for head in heads] + [readable(name.replace("_", " ")) for name in others]
    layers = plain_headings(range(len(values)))
    outside = [row for row in rows if row.layer_idx == OUTSIDE]
    beside = plain_headings([row.component.replace("_", " ") for row in outside])
    sums = np.array([[share(row) for row in outside]])
    return [
        Heatmap(
            title, "layer", plain_headings(_short_names(names)),
            [Band("", layers, values, blank=np.isnan(values))], across="component", compact=True,
        ),
        Heatmap(
            "outside the layers", "", beside, [Band("", plain_headings(["share"]), sums)], across="component"
        ),
    ]  # fmt: skip


def _short_names(names: Sequence[str]) -> list[str]:
    """Return the names of components with heads as their numbers, for narrow columns."""
    return [name.removeprefix("head ").replace("mlp", "MLP").replace("attention bias", "bias") for name in names]


class LogitShareFrame(_Frame):
    """The contributions of ``logit_attribution``: a DataFrame that shows itself."""

    _metadata = ["prompts", "answers"]  # noqa: RUF012 - pandas reads it: attributes that are no columns
    prompts: "Sequence[Sequence[str]]"
    """[B][T] texts of the tokens of each prompt, or their ids."""
    answers: "Sequence[str]"
    """[B] text of the token whose logit is decomposed, or its id."""

    def view(self) -> View:
        """Return what is shown: for each prompt and position what heads and MLPs add to the logit."""
        return LogitShares(
            LogitShare(
                name=f"prompt {row.prompt}, token {row.position}",
                prompt="".join(self.prompts[row.prompt][: row.position + 1]),
                answer=self.answers[row.prompt],
                answer_id=row.token_id,
                foil="",
                component=row.component,
                layer_idx=row.layer,
                head=row.head,
                share=row.logit,
                foil_share=None,
            )
            for row in self.itertuples()
        ).view()


# ---- Attention heads


class HeadViews(Rows[HeadView]):
    """Rows about attention heads, such as those of a run."""

    record_type = HeadView

    def view(self) -> View:
        """Return what is shown: for each prompt and token what each head attends to most, and induction scores."""
        queries = grouped(self, lambda row: (row.name, row.token_idx))
        return View(
            title="Attention heads: the token that each head attends to most",
            unit="attention probability",
            panels=lambda: iter([*map(_heads_panel, queries), *([_induction_panel(self)] if self else [])]),
            n_panels=len(queries) + bool(self),
            warning=left_out([p for row in self for p in row.probabilities], "attention probabilities", COLOURS),
        )


def _heads_panel(rows: Sequence[HeadView]) -> Panel:
    """Return the panel of one query token: layers by heads."""
    first = rows[0]
    values, texts = _by_head(rows, lambda row: row.probabilities[0]), _by_head_texts(rows)
    title = f"Attended to from token {first.token_idx} “{readable(first.token)}”"
    columns = plain_headings(range(values.shape[1]))
    band = Band("", plain_headings(range(len(values))), values, texts=texts)
    grid = Heatmap(title, "layer", columns, [band], across="head")
    return Panel(readable(first.prompt), [grid], name=first.name, signed=False)


def _by_head(rows: Sequence[HeadView], value: Callable[[HeadView], float]) -> np.ndarray[Any, Any]:
    """Return [layers, heads] values; NaN for heads without a row."""
    shape = max(row.layer_idx for row in rows) + 1, max(row.head for row in rows) + 1
    values = np.full(shape, np.nan)
    for row in rows:
        values[row.layer_idx, row.head] = value(row)
    return values


def _by_head_texts(rows: Sequence[HeadView]) -> list[list[str]]:
    """Return [layers][heads] the token attended to most."""
    shape = _by_head(rows, lambda row: 0.0).shape
    texts = [[""] * shape[1] for _ in range(shape[0])]
    for row in rows:
        texts[row.layer_idx][row.head] = visible(row.attended_tokens[0])
    return texts


def _induction_panel(rows: Sequence[HeadView]) -> Panel:
    values = _by_head(rows, lambda row: row.induction_score)
    band = Band("", plain_headings(range(len(values))), values)
    columns = plain_headings(range(values.shape[1]))
    title = "Prefix matching score on repeated random tokens; 1 for a perfect induction head"
    grid = Heatmap(title, "layer", columns, [band], across="head", compact=True)
    return Panel("all heads", [grid], name="induction", signed=False)


@dataclass(frozen=True)
class Attended:
    """A token that a head attends to."""

    layer: int
    head: int
    position: int
    """Position of the token that attends, the query token."""
    rank: int
    """1 for the token with the highest probability."""
    attended_position: int
    attended_token: str
    probability: float


class AttendedTokens(Rows[Attended]):
    """The tokens that heads attend to, as ``top_attended`` returns them."""

    record_type = Attended

    def view(self) -> View:
        """Return what is shown: a row per head, the tokens it attends to most across."""
        heads = [list(rows) for _, rows in groupby(self, key=lambda row: (row.layer, row.head))]
        width = max((len(rows) for rows in heads), default=0)
        values, texts = np.full((len(heads), width), np.nan), [[""] * width for _ in heads]
        for line, rows in enumerate(heads):
            for row in rows:
                values[line, row.rank - 1] = row.probability
                texts[line][row.rank - 1] = f"{row.attended_position} {visible(row.attended_token)}"
        names = plain_headings([f"{rows[0].layer}.{rows[0].head}" for rows in heads])
        ranks = plain_headings([f"rank {rank + 1}" for rank in range(width)])
        grid = Heatmap("Attended tokens", "layer.head", ranks, [Band("", names, values, texts=texts)], across="rank")
        panel = Panel(f"from token {self[0].position}" if self else "no heads", [grid], signed=False)
        return View(
            title="Attention heads: the tokens they attend to most",
            unit="attention probability",
            panels=lambda: iter([panel]),
            n_panels=1,
            warning=left_out([row.probability for row in self], "attention probabilities", COLOURS),
        )


# ---- Neurons


class NeuronEffects(Rows[NeuronEffect]):
    """Neurons compared on true and false texts: those of ``KnowledgeProber.scan``, or of a run."""

    record_type = NeuronEffect

    def view(self) -> View:
        """Return what is shown: the most significant neurons."""
        first = sorted(self, key=lambda effect: (order(effect.p_value), -abs(effect.hedges_g)))[:MOST_NEURONS]
        names = plain_headings([f"{effect.layer_idx}.{effect.neuron}" for effect in first])
        values = np.full((len(first), len(_COLUMNS)), np.nan)
        values[:, 0] = [effect.hedges_g for effect in first]
        texts = [[form(getattr(effect, name)) for name, _, form in _COLUMNS] for effect in first]
        columns = plain_headings([title for _, title, _ in _COLUMNS])
        grid = Heatmap(
            f"The {len(first)} most significant of {len(self)} neurons (layer.neuron)", "neuron", columns,
            [Band("", names, values, texts=texts)], across="statistic",
        )  # fmt: skip
        n_pairs = self[0].n_pairs if self else 0
        panel = Panel(f"all {len(self)} on {n_pairs} pairs of a true and a false text", [grid], name="neurons")
        return View(
            title="Neurons whose activation differs between true and false texts",
            unit="Hedges' g: blue where the activation is larger on true texts",
            panels=lambda: iter([panel]),
            n_panels=1,
            warning=left_out([effect.p_value for effect in self], "neurons", "the tests"),
        )

    def figure(self, input: int = 0) -> "Figure":
        """Draw each neuron by its effect size and its p-value; those with q up to 0.05 stand out.

        Args:
            input: always 0.

        Raises:
            InputError: for another input, or if no neuron was tested.
        """
        tested = [effect for effect in self if np.isfinite(effect.p_value)]
        check_input(input, 1)
        if not tested:
            raise InputError("no neuron was tested: there are none with finite activations")
        with drawing.styled():
            figure = drawing.Sheet(figsize=(4.6, 3.2), layout="constrained")
            place = figure.subplots()
            for significant, (colour, size) in ((False, ("#999999", 4)), (True, (drawing.LINES[0][0], 9))):
                some = [effect for effect in tested if (effect.q_value <= 0.05) == significant]
                x, y = [one.hedges_g for one in some], [-np.log10(one.p_value) for one in some]
                label = f"{len(some)} neurons with q {'≤' if significant else '>'} 0.05"
                place.scatter(x, y, s=size, color=colour, linewidths=0, label=label)
            for effect in {min(tested, key=_size), max(tested, key=_size)}:
                at = effect.hedges_g, -np.log10(effect.p_value)
                place.annotate(
                    f"{effect.layer_idx}.{effect.neuron}", at, (3, 3), textcoords="offset points", fontsize=6
                )
            place.axvline(0, color="black", linewidth=0.5)
            place.set(xlabel="Hedges' g (above 0: larger on true texts)", ylabel="−log10 p")
            place.spines[["top", "right"]].set_visible(False)
            place.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
            figure.suptitle("Neurons that differ between true and false texts (layer.neuron)", fontsize=9)
        return figure


def _size(effect: NeuronEffect) -> float:
    return effect.hedges_g


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


_COLUMNS: list[tuple[str, str, Callable[[float], str]]] = [
    ("hedges_g", "Hedges' g", _number),
    ("true_mean", "true mean", _number),
    ("false_mean", "false mean", _number),
    ("p_value", "p", _number),
    ("q_value", "q", _number),
]
"""Field of a neuron -> heading and form of its column."""
