s/^from torch\.distributions import Categorical$//
s/torch\.manual_seed/TORCH.manual_seed/
s/torch\.from_numpy\(state\)/Tensor(state)/
s/m = Categorical\(probs\)/probs = probs \/ probs.sum(-1, keepdim=True)/
s/action = m\.sample\(\)/action = probs.multinomial(1)/
s/m\.log_prob\(action\)/probs.log().gather(1, action).squeeze(1)/
s/torch\.tensor\(returns\)/Tensor(list(returns))/
