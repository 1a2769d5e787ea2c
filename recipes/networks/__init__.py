"""Networks for images; each ends in ``classifier``, a linear layer.

torchvision's with stems for small images, and convolutions that turn with the image.
"""
