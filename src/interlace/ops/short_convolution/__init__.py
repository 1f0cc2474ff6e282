"""The causal depthwise convolution over a few tokens that comes before a recurrent mixer."""
