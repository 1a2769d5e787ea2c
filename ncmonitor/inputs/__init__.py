"""Tensors and labels, checked and converted once, at the door.

What a batch holds, which labels count, and how classes are weighted.
"""
