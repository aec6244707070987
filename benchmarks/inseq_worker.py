"""Attribute texts with Inseq, in an environment of its own; ``inseq_comparison.py`` starts this script.

    python inseq_worker.py MODEL_FOLDER

Each line of the standard input is a request in JSON; each line of the standard output answers one with the time of the
call in seconds. The scores are written to the file that the request names.
"""

import json
import sys
import warnings
from importlib.metadata import version
from time import perf_counter
from typing import Any

import inseq  # type: ignore[import-not-found]
import numpy as np
import torch

warnings.simplefilter("ignore")


def answer(model: Any, request: dict[str, Any]) -> float:
    """Attribute one text; return the time in seconds."""
    module = request["module"]
    at = {"target_layer": model.model.get_submodule(module)} if module else {}
    model.get_attribution_method(request["method"], override_default_attribution=True, **at)
    # The places on the path that Captum's gradient SHAP would draw.
    np.random.uniform = lambda *_: np.array(request["places"])  # type: ignore[assignment]
    start = perf_counter()
    found = model.attribute(request["prompt"], request["text"], show_progress=False, **request["options"])
    seconds = perf_counter() - start
    np.save(request["file"], found.sequence_attributions[0].target_attributions.numpy())  # [T, G, D]
    return seconds


def main() -> None:
    """Answer requests until the standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # Inseq may print
    model = inseq.load_model(sys.argv[1], "saliency", device="cpu")
    assert model.model.dtype == torch.float32
    print(json.dumps([version("inseq"), torch.__version__, torch.get_num_threads()]), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(model, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
