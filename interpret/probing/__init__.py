"""What a model's parts hold and write: activations of whole batches, kept by name, and what is read off them.

``sites`` names the activations, ``cache`` keeps them; ``lenses``, ``logit_attribution`` and ``stream`` read a cache. So
does ``head_flow``, which ranks heads by what they write and read, and tells what they carry between tokens.

``knowledge`` probes MLP neurons, over ``neurons`` and the statistics of ``effects``; ``top_inputs`` finds the prompts
that excite them. ``heads`` shows, ablates, patches and merges attention heads; ``composition`` holds their weights
against each other and takes them apart. ``edits`` changes what neurons and heads say, ``structure`` whole layers.
"""
