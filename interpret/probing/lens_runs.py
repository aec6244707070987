"""Train a tuned lens in a run folder, ten steps per unit; the folder is the lens.

After each unit, the maps and the optimiser are stored in one of two files in ``checkpoints/``, in turn, so that a kill
at any time leaves that of the last finished unit. The last unit writes ``lens.safetensors``, and deletes both.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import anatomy_of, unwrapping
from interpret.errors import RunError, named, one_line
from interpret.models.identity import model_circumstances, model_identity
from interpret.probing.lens_maps import COMMAND, LENS_FILE
from interpret.probing.lens_training import LensSettings, LensTrainer, batch_at, pieces_of
from interpret.reading import read_text
from interpret.records import LensTraining
from interpret.storage import provenance
from interpret.storage.disk import write_inside
from interpret.storage.provenance import file_sha256
from interpret.storage.run import Run
from interpret.storage.run_folder import RunFolder
from interpret.work.loop import Work, fill_folder

CHECKPOINTS = "checkpoints"
STEPS_A_UNIT = 10
TRAINING = Work("Training", "done", "parts of the training")


@unwrapping
def train_lens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: Path | str,
    output: Path | str,
    *,
    steps: int = LensSettings.steps,
    batch_size: int = LensSettings.batch_size,
    length: int = LensSettings.length,
    lr: float = LensSettings.lr,
    seed: int = LensSettings.seed,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Train a tuned lens for a model, as ``interpret probe train-lens`` does; the same call resumes the training.

    Args:
        model: a causal LM of a supported family, in evaluation mode. It does not change.
        tokenizer: the model's tokenizer.
        text: a text file, which is cut into pieces.
        output: the run folder; it gets ``lens.safetensors``, ``manifest.json``, and the loss in ``table.csv``.
        steps: number of updates of the maps.
        batch_size: number of pieces of the text in each update.
        length: number of tokens of a piece.
        lr: learning rate of Adam at the first step; it decreases linearly to 0.
        seed: random seed of the order of the pieces.
        progress: show a progress bar on stderr.
        identity: further settings that determine the numbers, as JSON values; a run is resumed only if they are equal.
        circumstances: further entries of the manifest; they may change when the run is resumed.

    Returns:
        The run folder, for reading; ``load_tuned_lens(model, output)`` reads the lens.

    Raises:
        InputError: if an argument is invalid, the text is empty or shorter than a batch, or the model is in training
            mode; then nothing has been written.
        RunError: if the folder contains another run, is damaged, or cannot be written.
        UnsupportedModelError: if final norm and unembedding cannot be run apart from the model.

    Example:
        >>> train_lens(model, tokenizer, "text.txt", "runs/tuned").to_frame()  # doctest: +SKIP
    """
    settings = LensSettings(steps, batch_size, length, lr, seed)
    settings.check()
    pieces = pieces_of(tokenizer, read_text(text, like="text.txt"), named(text), settings)
    trainer = LensTrainer(model, settings, len(pieces[0]))
    return fill_folder(
        TRAINING,
        output,
        LensTraining,
        lambda run: _train(run, trainer, pieces),
        units=units_of(settings),
        others=(CHECKPOINTS, LENS_FILE),
        identity={
            **model_identity(model),
            "transformers": provenance.versions().get("transformers"),
            "command": COMMAND,
            "n_layers": len(anatomy_of(model).layers),
            "text_sha256": file_sha256(text),
            **asdict(settings),
            **(identity or {}),
        },
        circumstances={**model_circumstances(model), "text": str(text), **(circumstances or {})},
        progress=progress,
    )


def units_of(settings: LensSettings) -> list[str]:
    """Return the units of a training: the steps after which its state is stored."""
    return [f"step_{step}" for step in [*range(STEPS_A_UNIT, settings.steps, STEPS_A_UNIT), settings.steps]]


def _train(run: Run, trainer: LensTrainer, pieces: list[list[int]]) -> Iterator[str]:
    """Do the pending units, and yield each when it is on disk.

    Raises:
        RunError: if the stored state or the finished lens is missing or damaged.
    """
    if not run.pending:
        raise RunError(f"{named(run.folder / LENS_FILE)} is missing or changed; delete the folder, and train again")
    if run.finished:
        trainer.restore(_stored(run.folder, len(run.finished)))
    for unit in run.pending:
        last = int(unit.removeprefix("step_"))
        losses = [trainer.update(batch_at(pieces, step, trainer.settings)) for step in range(trainer.step, last)]
        rows = [
            LensTraining(step=last, layer_idx=layer, kl=sum(of_layer) / len(of_layer))
            for layer, of_layer in enumerate(zip(*losses, strict=True))
        ]
        if len(run.pending) == 1:
            run.write(unit, rows, files={LENS_FILE: trainer.lens.to_bytes()})
            shutil.rmtree(run.folder / CHECKPOINTS, ignore_errors=True)
        else:
            write_inside(run.folder, _checkpoint(len(run.finished) + 1), save(trainer.state()))
            run.write(unit, rows)
        yield unit


def _checkpoint(n_units: int) -> str:
    """Return the file with the state after some units; that of the unit before is another one."""
    return f"{CHECKPOINTS}/{n_units % 2}.safetensors"


def _stored(folder: Path, n_units: int) -> dict[str, Any]:
    """Read the state after some finished units."""
    path = folder / _checkpoint(n_units)
    try:
        state = load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise RunError(f"{named(path)} cannot be read: {one_line(error)}; delete the folder, and train again") from None
    if int(state["step"]) != n_units * STEPS_A_UNIT:
        raise RunError(f"{named(path)} is not the state after {n_units} parts; delete the folder, and train again")
    return state
