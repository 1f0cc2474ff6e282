"""Mamba's selective scan: a state for each channel, whose every element decays at its own rate."""
