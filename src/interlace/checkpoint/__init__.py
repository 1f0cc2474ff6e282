"""Folders on disk to models and back; nothing in a checkpoint is ever executed."""
