# data.py, and what main.py does before batches go to the model, are PyTorch's
/^class Dictionary/,$s/torch\./TORCH./g
s/torch\.(accelerator|manual_seed|onnx|utils)/TORCH.\1/g
s/torch\.device\("cpu"\)/"CPU"/
s/return data\.to\(device\)/return Tensor(data.numpy())/
s/PositionalEncoding, RNNModel, TransformerModel/PositionalEncoding, RNNModel/
/^class TransformerModel/,$d
/^def train\(\):/i\
@jit\
def learn(data, targets, hidden):\
    model.zero_grad()\
    output, hidden = model(data, hidden)\
    loss = criterion(output, targets)\
    loss.backward()\
    nn.utils.clip_grad_norm_(model.parameters(), args.clip)\
    for p in model.parameters():\
        p.data.add_(p.grad, alpha=-lr)\
    return loss, hidden\
\

/# Starting each batch, we detach/,/p\.data\.add_/c\
        loss, hidden = learn(data, targets, repackage_hidden(hidden))
