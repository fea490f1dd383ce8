"""Instruction samples: token ids and labels of conversations, padded or packed."""
