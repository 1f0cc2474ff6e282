"""Scaling laws: points, fits, intervals, savings, reports."""
