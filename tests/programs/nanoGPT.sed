# train.py: data, distribution and mixed precision are PyTorch's
/^from model import/,$s/torch\./TORCH./g
s/TORCH\.no_grad/torch.no_grad/
s/x, y = x\.to\(device\), y\.to\(device\)/x, y = Tensor(x.numpy()), Tensor(y.numpy())/
/^scaler = /d
/^# training loop$/i\
@jit\
def learn(batches):\
    for X, Y in batches:\
        logits, loss = model(X, Y)\
        loss = loss / gradient_accumulation_steps\
        loss.backward()\
    if grad_clip != 0.0:\
        nn.utils.clip_grad_norm_(model.parameters(), grad_clip)\
    optimizer.step()\
    optimizer.zero_grad(set_to_none=True)\
    return loss\

/# forward backward update/,/optimizer\.zero_grad/c\
    batches = []\
    for micro_step in range(gradient_accumulation_steps):\
        batches.append((X, Y))\
        X, Y = get_batch('train')\
    loss = learn(batches)
