s/^from torch\.optim import Adam$/from minigrad.nn.optim import Adam/
/^def get_y_neg/,/^    return x_/s/torch\./TORCH./g
s/torch\.(accelerator|device)/TORCH.\1/
s/(\[Layer\(.*\))\.to\(device\)/\1/
s/bias, device, dtype\)/bias)/
s/torch\.(mm|log1p)\(/Tensor.\1(/
s/net\.train\(x_pos, x_neg\)/net.train(Tensor(x_pos.numpy()), Tensor(x_neg.numpy()))/
/^        for i in range\(self\.num_epochs\):/i\
        @jit\
        def learn(x_pos, x_neg):\
            g_pos = self.forward(x_pos).pow(2).mean(1)\
            g_neg = self.forward(x_neg).pow(2).mean(1)\
            loss = Tensor.cat([-g_pos + self.threshold, g_neg - self.threshold]).exp().log1p().mean()\
            self.opt.zero_grad()\
            loss.backward()\
            self.opt.step()\
            return loss\

/^            g_pos = /,/^            self\.opt\.step\(\)/c\
            loss = learn(x_pos, x_neg)
