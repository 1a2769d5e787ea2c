"""What a Lightning trainer has: its loaders, weights, precision, processes and progress bar.

From these a measurement reads the same data at the same weights, and leaves no trace.
"""
