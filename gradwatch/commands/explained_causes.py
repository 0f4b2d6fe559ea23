"""The meaning of each cause, in plain words."""

from __future__ import annotations

from collections.abc import Mapping

from gradwatch.commands.explanation import Explanation

CAUSES: Mapping[str, Explanation] = {
    "GW101": Explanation(
        "A bounded activation takes most of the gradient at each layer",
        "A Sigmoid's slope is at most 1/4, so that ten of them leave a millionth of the gradient even at their best. A "
        "Tanh has a slope of 1 at zero and takes as much only where it is driven into its flat part. The evidence "
        "compares what the activations take with what the weights take; here the activations take more. Replacing "
        "them is what helps: rectifiers pass the gradient of active units on as it is. Normalizing before them keeps "
        "their inputs where they are steep.",
        "block = nn.Sequential(nn.Linear(64, 64), nn.Sigmoid())  # nn.ReLU(), with He initialization",
    ),
    "GW102": Explanation(
        "The weights start so small that neither signal nor gradient gets through",
        "The variance of a layer's weights, times its number of inputs, decides if a signal grows or fades from layer "
        "to layer, forward and backward alike. Below 1 it fades by the same factor at each layer. He, Xavier and "
        "LeCun initialization choose the variance so that the factor is 1 for their kind of activation. Weights that "
        "are all zero are the extreme: all units of a layer are copies of one another, and stay so, and two zero "
        "matrices in a row never leave zero at all.",
        "nn.init.normal_(layer.weight, std=0.01)  # nn.init.kaiming_normal_(layer.weight)",
    ),
    "GW103": Explanation(
        "The weights start so large that signal and gradient blow up",
        "The mirror of small weights: each layer multiplies by more than 1, so outputs and gradients grow with the "
        "depth, activations saturate, or numbers overflow. A second form shows in the first loss alone: a classifier "
        "that knows nothing should start at ln C for C classes; far above that it is sure of wrong answers, and "
        "spends its first steps on taking that back. Then only the last layer has to start smaller.",
        "nn.init.normal_(layer.weight)  # std 1 with 512 inputs: each layer multiplies by 23; nn.init.kaiming_normal_",
    ),
    "GW104": Explanation(
        "The steps are too large for the weights",
        "A usual step changes the weights by about a thousandth of their size. Here the first steps changed them by a "
        "tenth or more, and the loss rose, ReLUs died, or numbers overflowed. The right rate depends on the "
        "optimizer: 0.1 is usual for SGD, and 100 times what Adam takes, which moves every weight by about the rate "
        "whatever the gradient is. A clip, or a warm-up, makes a high rate bearable; a lower one is simpler.",
        "optimizer = torch.optim.Adam(model.parameters(), lr=0.1)  # lr=0.001",
    ),
    "GW105": Explanation(
        "Rectifiers fire for no sample, so that nothing passes them",
        "The layers before a dead layer get no gradient, and its own weights none either: it does not come back by "
        "itself. From the start it is a matter of the initialization or of inputs of another scale than it was made "
        "for. In training it is the work of one step that was too large. A LeakyReLU, a GELU or a SiLU keeps a slope "
        "where a ReLU has none, so that units can come back.",
        "nn.Sequential(nn.Linear(64, 8), nn.ReLU())  # nn.LeakyReLU(), or more units and a lower rate",
    ),
    "GW106": Explanation(
        "The head gives the loss nothing to learn from",
        "The layers are fine, and the end of the network passes no gradient, or next to none. A softmax over one unit "
        "is always 1. A cross-entropy takes logits and applies its own softmax: given probabilities it works, slowly, "
        "with a loss that can't fall below ln C - 1. A normalization over a single unit puts out its bias. A sign, a "
        "rounding or a comparison has a slope of 0 everywhere.",
        "probabilities = torch.softmax(model(x), dim=1)\n"
        "loss = nn.functional.cross_entropy(probabilities, y)  # cross_entropy(model(x), y)",
    ),
    "GW107": Explanation(
        "The inputs are of another scale than initializations are made for",
        "Initializations assume inputs of about mean 0 and deviation 1. Pixels of 0 to 255 make the first layer's "
        "outputs, and its gradient, a hundred times larger than that of all others: no single learning rate suits "
        "both. Years, prices and raw counts do the same. Standardize each feature on the training set and keep the "
        "numbers with the model, or put a normalization layer in front.",
        "x = images.float()  # images.float() / 255, or (x - mean) / std",
    ),
    "GW108": Explanation(
        "The targets are of another scale, or out of the range, of what the network can give",
        "A new network puts out numbers of about 1. Targets in the thousands give a squared error in the millions and "
        "gradients to match, and the first hundred steps only move the last bias. The other form is a network that "
        "ends in a Sigmoid or a Tanh, with targets outside of 0 to 1 or -1 to 1: it cannot reach them whatever it "
        "learns. A binary cross-entropy wants targets from 0 to 1, and falls without end with others.",
        "loss = nn.functional.mse_loss(model(x), prices)  # (prices - prices.mean()) / prices.std()",
    ),
    "GW109": Explanation(
        "The gradient fades or grows over the time steps of a recurrent network",
        "A recurrent cell multiplies by the same matrix at each time step, so that over 100 steps even 0.95 leaves "
        "half a percent, and 1.05 makes 130 of it. The network then learns from the end of a sequence alone, or blows "
        "up. Gates were made against that: an LSTM or a GRU can keep a value as it is over many steps. For long "
        "sequences attention gives each time step a path of length one.",
        "self.cells = nn.RNN(32, 64)  # nn.LSTM(32, 64), or nn.GRU(32, 64)",
    ),
    "GW110": Explanation(
        "The network is deep, and has neither skips nor a normalization that would carry the gradient",
        "No single layer is to blame: weights and activations are ordinary ones, and each takes a little. Over 30 or "
        "50 layers that is everything. A residual connection gives the gradient a way around each block, on which "
        "nothing multiplies it. A normalization between the layers sets the scale anew at each of them. Transformers "
        "that normalize after each block (post-norm) lose the first advantage; normalizing before it keeps it.",
        "for block in self.blocks:\n    x = block(x)  # x = x + block(norm(x))",
    ),
    "GW111": Explanation(
        "The steps are too small to change the weights",
        "The gradient is there, and the updates are a millionth of the weights: it would take a million steps to "
        "change them by their own size. A rate that is simply too low is only one way. Lightning advances a schedule "
        "once an epoch unless told otherwise, so that a warm-up of 1000 *steps* lasts 1000 *epochs*. A schedule may "
        "have ended early, one parameter group may have another rate, or Adam's `eps` may outweigh the gradients. "
        "The evidence says which.",
        'return {"optimizer": optimizer, "lr_scheduler": warm_up}\n'
        '# {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm_up, "interval": "step"}}',
    ),
    "GW112": Explanation(
        "Adam takes full steps at once on attention and normalization layers",
        "Adam divides by an average of past squared gradients. At the first steps that average is a guess from very "
        "few of them, and each step is as large as the rate allows. Transformers are sensitive to it, those that "
        "normalize after each block most of all. Letting the rate rise over the first few hundred steps costs "
        "nothing and lets both settle. Normalizing before each block makes it less needed.",
        "optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)  # and a LinearLR(start_factor=0.01) for 500 steps",
    ),
    "GW113": Explanation(
        "One batch, or one sample, stands out from all others",
        "The run was calm and one step was not: its loss jumped and came back, or its inputs held NaN or Inf, or one "
        "sample is a hundred times as large as the others. That is a matter of the data and not of the model: a "
        "broken file, a missing value that was read as -999, a division by an empty count. Clipping limits the "
        "damage. Finding and dropping the sample ends it, and the step in the message says where to look.",
        "x = (x - mean) / std  # std is 0 for a constant column: / std.clamp(min=1e-6)",
    ),
    "GW114": Explanation(
        "An operation gave NaN or Inf for an input it was not guarded against",
        "The numbers before it were moderate, and one operation broke: `log(0)`, `sqrt(0)` in the backward pass, "
        "`0 / 0`, `exp(100)` in half precision, a norm of a zero vector. The evidence names the operation and, where "
        "it can, the line. Clamp what goes in, not what comes out: `torch.where` around a NaN still has a NaN in "
        "the gradient. The losses of torch that take logits have these guards built in.",
        "distance = (a - b).square().sum(1).sqrt()  # its slope at 0 is Inf: (... + 1e-12).sqrt()",
    ),
    "GW115": Explanation(
        "A part of the model is cut off from the loss, or from the optimizer",
        "Part of the model can't learn, and the reason is in how it is put together: a `detach()` or `no_grad()` on "
        "the way, layers in a plain Python list that `parameters()` does not know, an optimizer that was built before "
        "the model was changed, a part that nothing calls, or `requires_grad` switched off by a filter that matched "
        "too much. If it is meant, freeze it with `requires_grad_(False)`, and nothing is said.",
        "self.layers = [nn.Linear(64, 64) for _ in range(4)]  # nn.ModuleList(...)",
    ),
    "GW116": Explanation(
        "Half precision loses the gradients or the updates",
        "float16 has nothing between 0 and 6e-8, so small gradients become exactly 0 unless the loss is scaled up "
        "first. bfloat16 has the range of float32 but only three decimal digits: an update of less than about 1/256 of "
        "a weight is rounded away whole, so that weights kept *in* bfloat16 stop learning at ordinary rates. Mixed "
        "precision keeps the weights in float32 and computes in half precision, and has neither trouble.",
        'trainer = Trainer(precision="bf16-true")  # "bf16-mixed"',
    ),
    "GW117": Explanation(
        "The loss has no minimum, and falls without end",
        "The loss is far below zero and falls faster and faster, and the weights grow with it, up to the overflow. "
        "The optimizer does as it is told, and the loss asks for something that has no best value: a sign that is "
        "the wrong way round, a distance that should be large with nothing to hold it, a likelihood whose variance "
        "may go to zero. Turn the sign, add a margin, or bound the variance from below.",
        "loss = -nn.functional.mse_loss(model(x), y)  # without the minus",
    ),
    "GW118": Explanation(
        "Weight decay has shrunk the weights to nothing",
        "Decay multiplies each weight by a little less than 1 at every step. Where the decay is stronger than the "
        "gradient, all weights go to zero, the outputs become the bias, and the gradient fades with the weights. In "
        "AdamW the decay is multiplied by the rate, in SGD and Adam it is part of the gradient; a number that suits "
        "one can be far too much for the other. Usual are 0.01 for AdamW and 1e-4 for SGD.",
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1.0)  # weight_decay=1e-4",
    ),
    "GW119": Explanation(
        "Clipping leaves next to nothing of the gradient",
        "A clip is there for outliers. Here the median step loses over 95 % of its gradient, so that every step has "
        "the same small length and the loss hardly falls. The bound was chosen for another model, or another batch "
        "size: gradients grow with the size of the network. Look at `grad_norm_total` over a run without a clip, and "
        "take the 90th percentile.",
        "trainer = Trainer(gradient_clip_val=0.001)  # at the 90th percentile of grad_norm_total",
    ),
    "GW120": Explanation(
        "Gradients are not cleared between two steps",
        "Each step goes along the sum of all gradients since the start. Early gradients never leave it, so that the "
        "direction turns ever more slowly while the steps grow. In Lightning it comes with manual optimization, or "
        "an override of `optimizer_zero_grad`. In a loop of your own, one line is missing.",
        "self.manual_backward(loss)\noptimizer.step()  # followed by optimizer.zero_grad()",
    ),
    "GW121": Explanation(
        "The optimizer steps, and the weights stay as they are",
        "Everything up to the step is right: there is a loss, and gradients reach every layer. Then the gradients are "
        "cleared before the step, or a wrapper around the optimizer forgets to call it, or something copies the old "
        "weights back after each step, or the forward pass runs on copies of the weights. The loss is constant up to "
        "the noise of the batches, which looks like a rate that is too low, and no rate helps.",
        "loss.backward()\noptimizer.zero_grad()  # before backward()\noptimizer.step()",
    ),
    "GW122": Explanation(
        "A clip is there, and can't do anything",
        "It is called before there is a gradient, or on parameters without one, or its bound is so high that no step "
        "ever met it while the gradient exploded all the same. The run looks protected and is not. `clip_grad_norm_` "
        "returns the norm it found; if that is 0 or never above the bound, the clip is idle.",
        "torch.nn.utils.clip_grad_norm_(model.parameters(), 1e6)  # a bound near the 90th percentile of the norms",
    ),
    "GW123": Explanation(
        "The processes have trained different models",
        "Their weights should be equal bit for bit after each step, and are not. A forward pass went past DDP's "
        "wrapper, so that gradients were not averaged; a process loaded, drew or changed weights alone; or a step "
        "was taken inside `no_sync()`. From then on each process trains for itself, on its own share of the data, "
        "and only one of them is saved.",
        "torch.manual_seed(rank)\nmodel = Net()  # the same seed in all processes, or let DDP spread rank 0's weights",
    ),
    "GW124": Explanation(
        "Output and target have different shapes, and are broadcast",
        "The difference of (N, 1) and (N,) is a matrix of N x N. Each output is compared with the targets of all "
        "samples, so the best it can give is their mean: the loss falls a little, stops at the variance of the "
        "targets, and all predictions are the same. torch warns of it in `mse_loss` alone. Compare the shapes in "
        "the step, or assert that they are equal.",
        "loss = (model(x) - y).abs().mean()  # y.unsqueeze(1), with model(x) of shape (N, 1)",
    ),
    "GW125": Explanation(
        "A function between two layers grows faster than its input",
        "An `exp`, a square or a cube used as an activation has a slope that rises with what comes in: twice the "
        "input means far more than twice the output and the gradient. As the weights grow in training, so does the "
        "slope, and the run ends in an overflow. Usual activations have a slope of about 1 at most, however much "
        "comes in. If the square is part of the method, normalize what goes into it.",
        "hidden = torch.exp(self.first(x))  # nn.functional.softplus(self.first(x))",
    ),
    "GW126": Explanation(
        "The code of a variational autoencoder says nothing about its sample",
        "The divergence in the loss asks each code to be plain noise. If it outweighs the reconstruction, the "
        "cheapest answer is to obey: the code is the same for all samples, the decoder learns to ignore it, and puts "
        "out the mean of the data. A common reason is a reconstruction that is averaged over the pixels beside a "
        "divergence that is summed over the code, hundreds of times too much weight.",
        "loss = nn.functional.mse_loss(again, x) + divergence.sum(1).mean()\n"
        "# (again - x).square().flatten(1).sum(1).mean() + divergence.sum(1).mean()",
    ),
    "GW127": Explanation(
        "Something was found, and no rule explains it",
        "The finding is real, and its cause is none that gradwatch knows, or the evidence was too thin to name one. "
        "The message has the numbers and the layers. Start there: look at what those layers get and give at the step "
        "that is named, and at what changed in the code since the last good run. If it turns out that the run is "
        "sound, that is a bug in gradwatch, and a report of it is welcome.",
        "assert model(x).shape == y.shape  # the first things to rule out: shapes, scales, and one batch by heart",
    ),
    "GW128": Explanation(
        "All labels of a batch are ones that the loss leaves out",
        "Cross-entropy skips targets of -100, which is how the tokens of a prompt, or padding, are kept out of the "
        "loss of a language model. If no other token is left, the mean over none is NaN, or the loss is 0 without a "
        "gradient. Often a chat template without its marker for the assistant's part masks everything, or samples are "
        "cut to a length that ends inside the prompt. Print the labels of one batch beside its tokens.",
        "labels = torch.full_like(input_ids, -100)  # labels[:, prompt_length:] = input_ids[:, prompt_length:]",
    ),
    "GW129": Explanation(
        "All completions of a prompt get the same reward",
        "GRPO and its kin learn from how a completion compares with the others of the same prompt. Where all get the "
        "same reward, each advantage is 0, and so is the gradient, however high the reward is. A reward that is hardly "
        "ever met gives 0 to all, an easy task 1 to all, and at a low temperature the completions are copies of one "
        "another. The loss looks calm all the while. Print the rewards of one group.",
        "def reward(completions, **_):\n    return [0.0 for text in completions]  # float(answer in text), say",
    ),
}
