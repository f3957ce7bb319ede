"""Penalties that hold old tasks."""
