"""Capacity-matched ladders of training runs: sizes x token multiples x architectures x seeds."""
