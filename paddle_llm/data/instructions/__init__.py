"""Instruction data: reads files in many formats as rows and converts the rows to conversations."""
