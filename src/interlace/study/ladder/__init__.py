"""Capacity-matched ladders: sizes x token multiples x architectures x seeds."""
