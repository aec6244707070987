"""Run a job into a run folder: the steps that an executor returns are written unit by unit."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import unwrapping
from interpret.models.extras import require
from interpret.models.opening import Opening, opening_of
from interpret.storage.outcomes import Dropped
from interpret.storage.run import Run
from interpret.storage.run_folder import RunFolder
from interpret.work.loop import fill_folder
from interpret.work.progress import say
from interpret.workers.in_process import InProcess
from interpret.workers.jobs import Executor, Finished, Job, Say, Step
from interpret.workers.pool import Pool
from interpret.workers.settings import Workers, workers_of


@unwrapping
def run_job(
    job: Job,
    model: PreTrainedModel | Opening,
    tokenizer: PreTrainedTokenizerBase | None,
    output: Path | str,
    *,
    workers: int | Workers = 1,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Do the pending units of a run, and return its folder.

    Args:
        job: what to do.
        model: a causal LM in evaluation mode; or how it is opened, so that only the workers open it.
        tokenizer: its tokenizer; None if the model is not open.
        output: the run folder.
        workers: number of processes that open the model and share the units, or ``Workers``; 1 for this process.
        progress: show a progress bar on stderr.
        identity: further settings that determine the numbers, as JSON values.
        circumstances: further entries of the manifest.

    Raises:
        InputError: if the job does not fit the model, or workers cannot open it; then nothing has been written.
        ModelError: if no worker can open the model, or ray is not installed.
        RunError: if the folder holds another run, or cannot be written; earlier units are on disk.
        UnsupportedModelError: if the model is not of a supported family.
    """
    with _executor(job, model, tokenizer, output, workers_of(workers), say if progress else _silent) as executor:
        return fill_folder(
            job.work,
            output,
            job.record_type,
            lambda run: written(run, job, executor),
            units=job.units,
            identity={**executor.identity, **job.identity, **(identity or {})},
            circumstances={**executor.circumstances, **job.circumstances, **(circumstances or {})},
            count=lambda units: job.count(executor, units),
            others=job.others,
            progress=progress,
        )


@contextmanager
def _executor(
    job: Job,
    model: PreTrainedModel | Opening,
    tokenizer: PreTrainedTokenizerBase | None,
    output: Path | str,
    workers: Workers,
    tell: Say,
) -> Iterator[Executor]:
    """Yield who does the tasks: this process, or workers, which end with the ``with`` block."""
    if workers.in_process:
        if isinstance(model, Opening):
            model, tokenizer = model.load(tell)
        yield InProcess(job, model, cast(PreTrainedTokenizerBase, tokenizer), tell)
        return
    opening = opening_of(model)
    require("ray", "workers", "cluster")
    from interpret.workers.ray_crew import ray_crew

    with ray_crew(workers, job, opening, output) as crew:
        pool = Pool(crew, job.work.failures[-1], workers.start_timeout, tell)
        pool.wait_for_first()
        yield pool


def _silent(line: str) -> None:
    pass


def written(run: Run, job: Job, executor: Executor) -> Iterator[Step]:
    """Do the pending units of a run, and write each; yield each step after it is on disk.

    The files of finished units that are missing or changed are made again.

    Args:
        run: an open run with the units and the record type of the job.
        job: what to do.
        executor: who does it.

    Raises:
        RunError: if the results cannot be written; earlier units are on disk.
    """
    pending, damaged = set(run.pending), set(run.damaged)
    for unit, reason in job.lacking.items():
        if unit in pending:
            run.drop(unit, reason)
            yield None
    for steps in executor.do(job.tasks(executor, pending | damaged), run.parts_for):
        finished = [step for step in steps if step is not None]
        if ready := [(step.unit, step.outcome) for step in finished if step.unit in pending]:
            run.take(ready)
        for step in finished:
            if step.unit in damaged:
                _make_again(run, step)
        yield from steps


def _make_again(run: Run, step: Finished) -> None:
    """Write the files of a finished unit; one that cannot be processed now keeps its rows."""
    if isinstance(step.outcome, Dropped):
        say(f"the files of {step.unit!r} are not made again: {step.outcome.reason}")
    else:
        run.write_again(step.unit, step.outcome.files)
