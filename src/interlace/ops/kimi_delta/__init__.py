"""Kimi Delta Attention: the gated delta rule with a decay for each channel of the key."""
