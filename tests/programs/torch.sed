# What all ports share: imports, functions that are methods of Tensor here, dtypes.
# TORCH. is what stays PyTorch's: the loading of data, and its seeds.
s/^import torch\.nn as nn$/from minigrad import nn/
s/^(import torch\.nn\.functional as F|from torch\.nn import functional as F)$/from minigrad.nn import functional as F/
s/^from torch import nn, optim$/from minigrad import nn\nfrom minigrad.nn import optim/
s/^import torch\.optim as optim$/from minigrad.nn import optim/
s/^import torch$/import torch\nfrom minigrad import Tensor, dtypes, jit, nn/
s/^from torch\.nn\.parameter import Parameter$/from minigrad.nn import Parameter/
s/^(from|import) torch\./\1 TORCH./
s/torch\.nn\./nn./g
s/torch\.optim\./nn.optim./g
s/torch\.(no_grad|inference_mode)\(\)/Tensor.no_grad()/g
s/torch\.(arange|cat|cumsum|exp|log|multinomial|ones|pow|randn_like|roll|sigmoid|sqrt|stack|sum|tanh|topk|tril|zeros|zeros_like)\(/Tensor.\1(/g
s/torch\.Tensor\b/Tensor/g
s/torch\.(long|int64)\b/dtypes.int64/g
s/torch\.float(32)?\b/dtypes.float32/g
s/TORCH\./torch./g
