"""Probe a model: logit lens, direct logit attribution, attention heads, MLP neurons and whole layers.

``_logit_lens``, ``_logit_attribution``, ``residual_stream`` and ``head_flow`` read an activation cache; ``head_flow``
ranks heads by what they write to and read from the residual stream.

``heads`` shows what attention heads attend to, ``composition`` analyses their weights. ``knowledge_prober`` finds
neurons that separate true from false texts, with ``neurons`` and the statistics of ``effects``; ``top_inputs`` finds
the prompts that activate a neuron most. ``head_edits`` ablates, patches and merges heads; ``layer_edits`` replaces,
deletes and reorders layers. ``prompt_runs`` and ``neuron_runs`` write results to run folders;
``prompt_probes`` has the probes of prompts, and ``registry`` lists them.
"""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
