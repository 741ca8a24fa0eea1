"""Imports that take long, made once in the process that children of tests are forked from."""

import gc

import accelerate
import torch._dynamo
import torch.distributed.run
import tyro

import evaluation.evaluate
import evaluation.report.page
import purification.__main__
import rdc.commands.classify_folder
import rdc.commands.main
import tests.support.children
import training.train

__all__ = ["accelerate", "evaluation", "purification", "rdc", "tests", "torch", "training",
           "tyro"]  # fmt: skip

# Collecting garbage would touch, and so copy, the memory that children share with this process.
gc.collect()
gc.freeze()
