"""Feedback alignment for one linear layer, used like `torch.nn.Linear`.

The layer computes y = W h + b. Let e = dL/dy be the error that comes back to it. Its own weights
learn as always: dL/dW = e h^T, dL/db = e. What differs is the message to the layers below:

    backpropagation (BP):     W^T e, which is dL/dh
    feedback alignment (FA):  B^T e, in place of dL/dh; B is random, and never changes

FA works because W turns toward B. To see why, let one input u come twice, with h = V u below this
layer, and let r be the learning rate. The first time, the message m = B^T e changes V by -r m u^T.
So the second time, h has gained -r |u|^2 m, and W learns -r e h^T, as ever: for what h has gained,
r^2 |u|^2 e m^T. The inner product of e m^T with B is |m|^2, which is positive.

Source: T. P. Lillicrap, D. Cownden, D. B. Tweed, C. J. Akerman, "Random synaptic feedback weights
support error backpropagation for deep learning", Nature Communications 7:13276 (2016).
"""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class FALinearFunction(torch.autograd.Function):
    """W h + b, with a backward pass of our own, which uses B (`feedback`) in place of W (`weight`).

    PyTorch calls `forward` for the output; `setup_context`, to put into `ctx` what the backward
    pass will need; and in `loss.backward()`, with that `ctx` and the error, `backward`. This
    returns a gradient for each argument of `forward`. Use it by `FALinearFunction.apply(...)`.

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
        ctx.save_for_backward(input, feedback)  # backward has no need of the weight

    @staticmethod
    @once_differentiable  # B^T e is no derivative: there is nothing to differentiate again
    def backward(ctx, grad_output):
        input, feedback = ctx.saved_tensors
        # Under torch.autocast the error has a lower precision than what was saved.
        input, feedback = input.to(grad_output.dtype), feedback.to(grad_output.dtype)
        grad_input = grad_output @ feedback  # <-- FA. BP: grad_output @ weight
        # The rest is as under BP: e h^T and e, summed over the examples.
        e = grad_output.reshape(-1, grad_output.shape[-1])
        h = input.reshape(-1, input.shape[-1])
        grad_weight = e.T @ h
        grad_bias = e.sum(0) if ctx.needs_input_grad[2] else None  # there may be no bias
        return grad_input, grad_weight, grad_bias, None  # B never learns


class FALinear(nn.Linear):
    """`nn.Linear` that teaches the layers below it by feedback alignment.

    Arguments, outputs and initial weights are those of `nn.Linear`. B is the buffer `feedback`,
    drawn as W is: shape (out_features, in_features), saved with the layer, no parameter. For real
    numbers only. The first layer of a network has none below it to teach, and can stay `nn.Linear`:

        network = nn.Sequential(nn.Linear(784, 20), FALinear(20, 10))

    Limits:
        - B^T e is no derivative. Second derivatives raise RuntimeError or, in nested torch.func
          transforms and for a constant e, are zero.
        - What takes the weight without calling the layer learns by BP, without an error:
          torch.export, nn.MultiheadAttention, torch.compile around a torch.func transform.
        - Gradients below the layer are messages. For saliency or attacks, use a twin: an nn.Linear
          that loads this layer's state_dict with strict=False.
    """

    def reset_parameters(self) -> None:
        """Draw W and b as `nn.Linear` does, then B. `nn.Linear.__init__` calls this."""
        super().reset_parameters()
        feedback = torch.empty_like(self.weight, requires_grad=False)
        nn.init.kaiming_uniform_(feedback, a=math.sqrt(5))  # as nn.Linear draws its weight
        self.register_buffer("feedback", feedback)

    def forward(self, input: Tensor) -> Tensor:
        """Return input W^T + b: (..., in_features) -> (..., out_features)."""
        return FALinearFunction.apply(input, self.weight, self.bias, self.feedback)
