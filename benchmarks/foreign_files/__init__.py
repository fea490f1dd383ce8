"""Seeded hostile variants of the files that other people's tools write, and the readers that they are given to."""
