"""One model trained on one's own text, in a run folder that survives being killed."""
