"""A causal convolution as long as the sequence."""
