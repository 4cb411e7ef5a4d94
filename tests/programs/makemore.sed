/^class CharDataset/,/^if __name__/s/torch\./TORCH./g
s/torch\.(manual_seed|cuda)/TORCH.\1/
s/torch\.tensor\(losses\)/Tensor(losses)/
s/batch = \[t\.to\(args\.device\) for t in batch\]/batch = [Tensor(t.numpy()) for t in batch]/
/^    # training loop$/i\
    @jit\
    def learn(X, Y):\
        logits, loss = model(X, Y)\
        model.zero_grad(set_to_none=True)\
        loss.backward()\
        optimizer.step()\
        return loss\

/# feed into the model/,/optimizer\.step\(\)/c\
        loss = learn(X, Y)
