"""How weights are cut over workers: which boxes each holds, layers of fewer heads, and files of boxes."""
