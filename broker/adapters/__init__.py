"""Thin translations between the core and the world; no policy."""
