"""Instruction samples: token ids and labels of conversations, packed or padded."""
