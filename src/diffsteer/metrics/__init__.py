"""Measures samples: features of images, moments of features, metrics of both.

Import from the modules; this one stays empty, so that the command line starts without torch.
"""
