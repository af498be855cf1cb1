"""Craft, attribute, defend against and explain adversarial images with PyTorch Lightning."""

__version__ = "0.1.0"
