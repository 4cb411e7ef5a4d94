s/torch\.(accelerator|manual_seed|utils)/TORCH.\1/g
s/torch\.device\("cpu"\)/"CPU"/
s/data = data\.to\(device\)/data = Tensor(data.numpy())/
/^def train\(epoch\):/i\
@jit\
def learn(data):\
    optimizer.zero_grad()\
    recon_batch, mu, logvar = model(data)\
    loss = loss_function(recon_batch, data, mu, logvar)\
    loss.backward()\
    optimizer.step()\
    return loss\
\

/^        optimizer\.zero_grad\(\)/,/^        optimizer\.step\(\)/c\
        loss = learn(data)\
        train_loss += loss.item()
