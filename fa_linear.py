"""Feedback alignment for one linear layer, used like `torch.nn.Linear`.

The layer computes y = W h + b. An error e comes back to it: dL/dy, or what an FA layer above sends.
Its own weights learn from it as usual, by e h^T and e. What differs is the message that it sends
to the layers below:

    backpropagation (BP):     W^T e, which is dL/dh
    feedback alignment (FA):  B^T e, in place of dL/dh; B is random, and never changes

It can work because the layers below learn from the messages, and so write B's rows into h; W, which
learns from h, copies them, and turns toward B. README.md shows it, and why.

Source: T. P. Lillicrap, D. Cownden, D. B. Tweed, C. J. Akerman, "Random synaptic feedback weights
support error backpropagation for deep learning", Nature Communications 7:13276 (2016).
"""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class FALinearFunction(torch.autograd.Function):
    """W h + b, with a backward pass that uses B (`feedback`) in place of W (`weight`).

    `FALinearFunction.apply(input, weight, bias, feedback)` runs `forward`, and lets `setup_context`
    put into `ctx` what the backward pass will need. `loss.backward()` gives that `ctx` and the
    error to `backward`, which returns a gradient for each argument of `forward`.

    Examples are rows: `input` (..., in_features), `grad_output` (..., out_features). So B^T e reads
    e @ B. `weight` and `feedback` are (out_features, in_features), `bias` (out_features,) or None.
    """

    generate_vmap_rule = True  # for torch.func.vmap

    @staticmethod
    def forward(input, weight, bias, feedback):
        return F.linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, _weight, _bias, feedback = inputs
        ctx.save_for_backward(input, feedback)  # backward does not need the weight

    @staticmethod
    @once_differentiable  # B^T e is no derivative: there is nothing to differentiate again
    def backward(ctx, grad_output):
        input, feedback = ctx.saved_tensors
        # Under torch.autocast the error has a lower precision than what was saved.
        input, feedback = input.to(grad_output.dtype), feedback.to(grad_output.dtype)
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = grad_output @ feedback  # <-- FA. BP: grad_output @ weight
        # The rest is BP's: e h^T and e, summed over the examples.
        e = grad_output.reshape(-1, grad_output.shape[-1])
        if ctx.needs_input_grad[1]:
            grad_weight = e.T @ input.reshape(-1, input.shape[-1])
        if ctx.needs_input_grad[2]:
            grad_bias = e.sum(0)
        return grad_input, grad_weight, grad_bias, None  # B never learns


class FALinear(nn.Linear):
    """`nn.Linear` that teaches the layers below it by feedback alignment.

    Arguments, outputs and initial weights are those of `nn.Linear`. B is the buffer `feedback`,
    drawn like W: shape (out_features, in_features), saved with the layer, and not a parameter. Real
    numbers only. A network's first layer has none below to teach: an `nn.Linear` will do.

        network = nn.Sequential(nn.Linear(784, 20), FALinear(20, 10))

    Limits:
        - Gradients below the layer are messages. For saliency or attacks, use a twin: an nn.Linear
          that shares this layer's weight and bias.
        - B^T e is no derivative, so do not differentiate twice through the layer: some attempts
          raise a RuntimeError, others (a gradient penalty, hessian) are silently wrong.
        - Code that uses the weight without calling the layer silently trains by BP: programs made
          by torch.export, nn.MultiheadAttention.
        - torch.compile around a torch.func transform gives wrong gradients unless
          torch.compiler.allow_in_graph(FALinearFunction) was called.
    """

    def reset_parameters(self) -> None:
        """Draw W and b as `nn.Linear` does, then B. `nn.Linear.__init__` calls this."""
        super().reset_parameters()
        feedback = torch.empty_like(self.weight, requires_grad=False)
        nn.init.kaiming_uniform_(feedback, a=math.sqrt(5))  # as nn.Linear draws its weight
        self.register_buffer("feedback", feedback)

    def forward(self, input: Tensor) -> Tensor:
        """Return input W^T + b: (..., in_features) -> (..., out_features)."""
        # Detached: if your rule computes B from W, no gradient flows through that.
        return FALinearFunction.apply(input, self.weight, self.bias, self.feedback.detach())
