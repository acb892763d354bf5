"""Agents, one file each, and the few files that they share."""
