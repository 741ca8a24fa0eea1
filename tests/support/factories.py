"""A file of functions that build models, as a user would write it."""

FACTORY = """
import torch
from rdc import ImageClassifier

def cnn():
    return ImageClassifier.from_pretrained("digits-cnn")

def function():
    return lambda images: cnn()(images)

def of_path(path):
    return cnn()

def nothing():
    return 3
"""
