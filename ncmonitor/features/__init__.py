"""Features of a model: the classifier's input, and what inner layers give, from one forward pass.

The model is left as it was: modes, buffers, generators and attributes are put back.
"""
