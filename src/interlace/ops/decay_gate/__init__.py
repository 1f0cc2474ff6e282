"""How fast a layer forgets, and how much a token writes, from what the layer projects."""
