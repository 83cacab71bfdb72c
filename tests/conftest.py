"""Settings for all tests."""

import torch

# The tensors here are small: a second thread costs more than it saves, most of all beside other processes.
torch.set_num_threads(1)
