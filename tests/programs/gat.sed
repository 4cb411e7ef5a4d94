s/^from torch import nn$/from minigrad import nn/
s/^from torch\.optim import Adam$/from minigrad.nn.optim import Adam/
/^def load_cora/,/^def train_iter/s/torch\./TORCH./g
s/torch\.(manual_seed|accelerator)/TORCH.\1/
s/torch\.device\('cpu'\)/"cpu"/
s/load_cora\(device=device\)/(Tensor(x.numpy()) for x in load_cora())/
s/torch\.randperm\(len\(labels\)\)\.to\(device\)/Tensor(TORCH.randperm(len(labels)).numpy())/
s/torch\.empty\(size=\((.*)\)\)\)$/Tensor.empty(\1))/
s/torch\.(matmul|mm|ones_like|where)\(/Tensor.\1(/g
/^def train_iter/i\
@jit\
def learn(features, adj_mat, target, mask):\
    optimizer.zero_grad()\
    output = gat_net(features, adj_mat)\
    loss = criterion(output[mask], target[mask])\
    loss.backward()\
    optimizer.step()\
    return loss\
\

/^    optimizer\.zero_grad\(\)/,/^    optimizer\.step\(\)/c\
    loss = learn(*input, target, mask_train)
