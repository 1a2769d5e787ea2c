"""The geometry of K vectors in R^d: class means, or rows of the classifier.

Their spectrum and Gram matrix in float64, and quantities of all their pairs.
"""
