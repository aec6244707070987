"""Names of hidden states, the same for every table.

Tables identify a state by the columns ``site`` and ``layer_idx``. The residual stream between two layers has two names
there, as the output of one layer and as the input of the next; ``state_name`` gives both the same name.
"""

FINAL_NORM = "final_norm"
"""Site of the state after the final norm, the input of the unembedding; its ``layer_idx`` is the number of layers."""


def state_name(site: str, layer_idx: int) -> str:
    """Return the unique name of a state; ``interpret.record`` accepts it, except for ``final_norm``.

    Args:
        site: one of ``interpret.activations.SITES``, or ``final_norm``.
        layer_idx: the layer, from 0.

    >>> state_name("resid_post", 4), state_name("resid_pre", 5), state_name("resid_pre", 0), state_name("mlp_out", 3)
    ('resid_post.4', 'resid_post.4', 'resid_pre.0', 'mlp_out.3')
    """
    if site == FINAL_NORM:
        return FINAL_NORM
    if site == "resid_pre" and layer_idx > 0:
        return f"resid_post.{layer_idx - 1}"
    return f"{site}.{layer_idx}"
