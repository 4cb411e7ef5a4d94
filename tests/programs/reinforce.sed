s/^from torch\.distributions import Categorical$//
s/torch\.manual_seed/TORCH.manual_seed/
# Acting is captured; of each step its state, dropout's factors and its action are kept.
s/def forward\(self, x\):/def forward(self, x, kept):/
s/x = self\.dropout\(x\)/x = x * kept/
s/^def select_action\(state\):$/@jit\ndef act(state):\n    kept = policy.dropout(Tensor.ones(1, 128))\n    return policy(state, kept).multinomial(1), kept\n\n\n&/
s/torch\.from_numpy\(state\)\.float\(\)\.unsqueeze\(0\)/Tensor(state[None])/
s/probs = policy\(state\)/action, kept = act(state)/
/m = Categorical\(probs\)/d
/action = m\.sample\(\)/d
s/m\.log_prob\(action\)/(state, kept, action)/
# The log-probabilities of an episode's steps are computed together.
s/torch\.tensor\(returns\)/Tensor(list(returns))/
s/^    for log_prob, R in zip\(.*$/    states, kept, actions = map(Tensor.cat, zip(*policy.saved_log_probs))/
s/^        policy_loss\.append\(-log_prob \* R\)$/    probs = policy(states, kept)\n    probs = probs \/ probs.sum(-1, keepdim=True)\n    policy_loss = -probs.log().gather(1, actions).squeeze(1) * returns/
s/torch\.cat\(policy_loss\)\.sum\(\)/policy_loss.sum()/
