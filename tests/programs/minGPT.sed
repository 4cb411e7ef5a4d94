# adder.py, trainer.py: data and seeds are PyTorch's
/^class AdditionDataset/,/^if __name__/s/torch\./TORCH./g
/^from torch\.utils/,$s/torch\.(cuda|utils)/TORCH.\1/g
/^def set_seed/,/^def /s/torch\./TORCH./g
s/torch\.tensor\((\[\[10.*\]\])\)\.to\(trainer\.device\)/Tensor(\1)/
s/x = x\.to\(trainer\.device\)/x = Tensor(x.numpy())/
s/torch\.tensor\(results, dtype=torch\.float\)/Tensor(results, dtype="float32")/
s/batch = \[t\.to\(self\.device\) for t in batch\]/batch = [Tensor(t.numpy()) for t in batch]/
/^        model\.train\(\)$/a\
\
        @jit\
        def learn(x, y):\
            logits, loss = model(x, y)\
            model.zero_grad(set_to_none=True)\
            loss.backward()\
            nn.utils.clip_grad_norm_(model.parameters(), config.grad_norm_clip)\
            self.optimizer.step()\
            return loss\

/# forward the model$/,/self\.optimizer\.step\(\)/c\
            self.loss = learn(x, y)
