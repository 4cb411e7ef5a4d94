s/torch\.randint\(1, self\.n_T\+1, \(x\.shape\[0\],\)\)\.to\(self\.device\)/Tensor.randint(x.shape[0], low=1, high=self.n_T+1)/
s/torch\.bernoulli\((.*)\)\.to\(self\.device\)/(\1).bernoulli()/
s/x = x\.to\(device\)/x = Tensor(x.numpy())/
s/c = c\.to\(device\)/c = Tensor(c.numpy())/
/^    for ep in range/i\
    @jit\
    def learn(x, c):\
        optim.zero_grad()\
        loss = ddpm(x, c)\
        loss.backward()\
        optim.step()\
        return loss\

/^            optim\.zero_grad/d
/^            loss = ddpm/,/^            loss\.backward/c\
            loss = learn(x, c)
/^            optim\.step/d
