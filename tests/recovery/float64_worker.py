"""The trainer in float64, for `test_distributed`: `torchrun … tests/recovery/float64_worker.py FLAGS`."""

import sys

import torch

from training.train import main

torch.set_default_dtype(torch.float64)
sys.exit(main(sys.argv[1:]))
