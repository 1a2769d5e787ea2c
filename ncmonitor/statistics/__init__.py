"""Class moments and the two passes over the features: streaming, mergeable, over processes.

The first pass finds counts and means; the second what needs the final class means.
"""
