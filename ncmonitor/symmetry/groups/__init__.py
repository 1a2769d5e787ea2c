"""What acts on inputs: finite groups, drawn transforms and flows, of images, points and sets.

Whether a group fits a batch is checked before anything is measured with it.
"""
