"""Instruction data: files -> rows -> conversations."""
