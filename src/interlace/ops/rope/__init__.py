"""Rotary positions: pairs of a head's elements turn by the angles of their token."""
