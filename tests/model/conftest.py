"""One thread: tests of this room are many tiny operations, run side by side on few cores."""

import torch

torch.set_num_threads(1)
