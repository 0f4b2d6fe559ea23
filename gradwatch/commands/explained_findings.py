"""The meaning of each finding, in plain words."""

from __future__ import annotations

from collections.abc import Mapping

from gradwatch.commands.explanation import Explanation

FINDINGS: Mapping[str, Explanation] = {
    "GW001": Explanation(
        "The gradient fades on its way to the first layers",
        "Going back from the loss, each layer multiplies the gradient by its weights and by the slope of its "
        "activation. Where these factors are below 1, little is left after some layers: the layers near the loss "
        "learn, the first ones stay as they were initialized, and the network is in effect a shallow one on random "
        "features. The loss may still fall, which is why nobody sees it there. In a recurrent network the same "
        "happens over the time steps: the early part of a sequence has no say. The finding says *where* it fades; "
        "the cause beside it says *why*: most often a Sigmoid or Tanh "
        "([GW101](GW101.md)), small weights ([GW102](GW102.md)), or the depth itself ([GW110](GW110.md)).",
        "layers = [part for _ in range(10) for part in (nn.Linear(64, 64), nn.Sigmoid())]\n"
        "model = nn.Sequential(*layers, nn.Linear(64, 10))  # a slope of 1/4 at most, ten times",
    ),
    "GW002": Explanation(
        "The gradient grows on its way to the first layers, or is huge altogether",
        "The opposite of vanishing: factors above 1 multiply up through the layers, or through the time steps of a "
        "recurrent cell, until a step throws the first layers far off. The next sign is a loss that jumps, and then "
        "NaN. A gradient that grows is harmless as long as it is small beside the weights, so the finding waits until "
        "it outweighs them. A clip keeps such a run alive and hides the reason. Look at the cause for that: weights "
        "([GW103](GW103.md)), inputs ([GW107](GW107.md)), targets ([GW108](GW108.md)) or the recurrence "
        "([GW109](GW109.md)).",
        "for layer in model.modules():\n"
        "    if isinstance(layer, nn.Linear):\n"
        "        nn.init.normal_(layer.weight, std=1.0)  # He: std = (2 / layer.in_features) ** 0.5",
    ),
    "GW003": Explanation(
        "The loss, an activation or a gradient is NaN or Inf",
        "A single NaN in a gradient makes every weight that it reaches NaN at the next step, and the run is lost. "
        "The finding names the first layer where it shows in the forward pass, the first in the backward pass, the "
        "exact step, and, where it can tell, the line of your code. Read that line first: a logarithm or a root of 0, "
        "a division by 0, an `exp` that overflows ([GW114](GW114.md)). If the numbers had been growing for steps, "
        "the line is only where they broke, and the learning rate ([GW104](GW104.md)) or the scale of the data is "
        "to blame. If they came with one batch, see [GW113](GW113.md).",
        "loss = (p * p.log()).sum()  # p may be exactly 0: p.clamp(min=1e-8).log()",
    ),
    "GW004": Explanation(
        "Most units of a ReLU layer are active for no sample",
        "A ReLU that gets a negative number puts out 0 and passes no gradient back. If it does so for every sample, "
        "its weights never change again: the unit is dead, and the layer has in effect fewer units than you gave it. "
        "A few such units are normal, and so are sparse codes. With most of a layer gone, something pushed the "
        "biases down: one step that was far too large, or inputs that are all negative. Whether it was from the "
        "start or came in training is the difference that matters; see [GW105](GW105.md).",
        "nn.init.constant_(model[0].bias, -10.0)  # nn.init.zeros_(model[0].bias)",
    ),
    "GW005": Explanation(
        "Most outputs of a bounded activation lie where it is flat",
        "A Sigmoid or a Tanh is steep around 0 and flat outside of about -5 to 5. There its output hardly depends on "
        "its input, and the gradient is multiplied by nearly 0. Saturation starts with weights or inputs that are "
        "too large, and it keeps itself up, since the gradient that could undo it does not come through. At the "
        "output it is wanted, for there a Sigmoid should say 0 or 1, and that layer is left out. So are gates of "
        "recurrent cells as long as the run learns.",
        "hidden = torch.tanh(linear(255 * pixels))  # linear(pixels), or linear(pixels / 255)",
    ),
    "GW006": Explanation(
        "Parameters that should learn get no gradient",
        "The optimizer holds these parameters, and their gradient is missing or exactly 0, step after step. The usual "
        "reason is a cut in the graph between them and the loss: a `detach()`, a `no_grad()`, a trip through NumPy, "
        "an `argmax`. Or the forward pass does not use them, or the head passes nothing on. Nothing warns of it, "
        "since the rest of the network learns and the loss falls. Parts that are only at rest, such as an expert that "
        "was not drawn or the head of another task, are recognised and not reported.",
        "features = self.encoder(x).detach()  # without detach(), unless the encoder should stay as it is\n"
        "loss = cross_entropy(self.head(features), y)",
    ),
    "GW007": Explanation(
        "The loss, or the norm of the gradient, jumps",
        "One step has a loss many times what it was before, beyond the run's own noise. Single odd batches do that, "
        "and so does a step that was too large, after which it takes the run long to come back, if it does. A jump in "
        "a loss that varies by itself from step to step, as with single samples or an actor and a critic, is only "
        "reported if the loss stays up. Look at the batch of that step first ([GW113](GW113.md)), then at the "
        "learning rate ([GW104](GW104.md)).",
        'target = float(row["price"])  # one row in the file has -999 for a missing value: drop it',
    ),
    "GW008": Explanation(
        "Parameters have a gradient, and their weights do not change",
        "The gradient says what was asked for, the update what was done. Here the second is nothing, though the first "
        "is not. The finding's `case` says why: no optimizer holds them, their learning rate is 0, a loss scaler "
        "skips each step, their updates are rounded away in half precision, something writes the old weights back, "
        "or the step itself does nothing. It is one of the faults that a loss curve can't show, as the rest of the "
        "model may learn around it.",
        "optimizer = torch.optim.Adam(model.head.parameters())  # model.parameters()",
    ),
    "GW009": Explanation(
        "A step begins with the gradient of the step before",
        "`backward()` adds to `.grad`, it does not replace it. Without `optimizer.zero_grad()` between two steps the "
        "optimizer steps along the sum of all gradients so far. The loss may fall all the same, only worse, as with "
        "a momentum that never forgets, so that nothing else shows it. Accumulation on purpose is no finding: there "
        "the optimizer has not stepped along the gradient yet.",
        "for x, y in batches:\n"
        "    loss_of(model(x), y).backward()  # optimizer.zero_grad() belongs in front of it\n"
        "    optimizer.step()",
    ),
    "GW010": Explanation(
        "A clip is called where it can't clip anything",
        "`clip_grad_norm_` works on the gradients that are there when it is called. Before `backward()` there are "
        "none, or those of the step before; and on parameters that have no gradient it does nothing. It raises no "
        "error, so the run seems to be protected, and is not. In Lightning, give `gradient_clip_val` to the Trainer, "
        "and it is called in the right place.",
        "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # after backward(), before step()\n"
        "loss.backward()\n"
        "optimizer.step()",
    ),
    "GW011": Explanation(
        "The processes of a distributed run hold different weights",
        "Data parallel training keeps one copy of the model in each process. All start equal and take the same step, "
        "so they stay equal bit for bit. Once they differ, each trains a model of its own, and what you save is that "
        "of rank 0 alone, trained on its part of the data. The check compares checksums of every tensor after a "
        "step. `gradwatch check` itself trains in one process, so that this one is found by the monitor in real "
        "runs.",
        "loss = loss_of(model.module(x), y)  # model(x): DDP averages the gradients in its own forward pass",
    ),
    "GW012": Explanation(
        "The loss compares each output with each target",
        "An output of shape (64, 1) and a target of shape (64,) do not raise an error: broadcasting makes a matrix "
        "of 64 x 64 differences of them. The loss is then smallest where every output is the mean of all targets, "
        "and that is what the network learns, however long it trains. It is among the most common bugs in "
        "regression, and looks like a hard problem.",
        "loss = (model(x) - y).square().mean()  # shapes (64, 1) and (64,): model(x).squeeze(1)",
    ),
    "GW013": Explanation(
        "The loss does not come below its start",
        "After enough steps to expect something the loss is where it began, beyond its own noise. It is told late on "
        "purpose: many runs wait on a plateau first, and a fine-tune may be at its end already. A run of 20 steps, "
        "as in a check, shows it only where the updates are as large as the weights, or where the loss rests at that "
        "of a constant prediction. If no cause is named, train on one small batch: what can't learn 8 samples by "
        "heart has a fault in the model, the loss or the rate, and not in the data.",
        "y = y[torch.randperm(len(y))]  # x, y = x[order], y[order]: one order for both",
    ),
}
