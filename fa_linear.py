"""Feedback alignment for one linear layer, as a drop-in for `torch.nn.Linear`.

Backpropagation (BP) teaches the layers below y = W x + b by sending the error
e = dL/dy back through the transpose of the forward weights:

    BP:  dL/dx = W^T e

Feedback alignment (FA) sends it through a fixed random matrix B instead:

    FA:  B^T e, in place of dL/dx

The layer's own weights learn as under BP (dL/dW = e x^T, dL/db = e). While they do, W
comes to resemble B, and so the message B^T e to the layers below comes to resemble W^T e.
(Where another FA layer lies above, e is not dL/dy, but what came down from there.)

Source: T. P. Lillicrap, D. Cownden, D. B. Tweed, C. J. Akerman, "Random synaptic
feedback weights support error backpropagation for deep learning", Nature
Communications 7:13276 (2016), doi:10.1038/ncomms13276.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class FALinearFunction(torch.autograd.Function):
    """y = x W^T + b, whose backward pass uses `feedback` (B) in place of `weight` (W).

    Rows are examples here, so a column equation such as B^T e reads e @ B in the code.

    Shapes: input (..., in_features), output (..., out_features), weight and feedback
    (out_features, in_features), bias (out_features,) or None; `...` may be empty.
    """

    generate_vmap_rule = True  # makes it work under torch.func.vmap

    @staticmethod
    def forward(input, weight, bias, feedback):
        if weight.is_complex():
            raise TypeError("feedback alignment is for real numbers")
        return F.linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, _weight, _bias, feedback = inputs
        ctx.save_for_backward(input, feedback)  # backward has no need of the weight!

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        input, feedback = ctx.saved_tensors
        # Under autocast the error arrives in a lower precision than the saved tensors.
        input, feedback = input.to(grad_output.dtype), feedback.to(grad_output.dtype)
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = grad_output @ feedback  # <-- FA. BP: grad_output @ weight
        # The rest is as under BP: sums over the examples, so over all leading dimensions.
        error = torch.atleast_2d(grad_output).flatten(0, -2)
        if ctx.needs_input_grad[1]:
            grad_weight = error.T @ torch.atleast_2d(input).flatten(0, -2)
        if ctx.needs_input_grad[2]:
            grad_bias = error.sum(0)
        return grad_input, grad_weight, grad_bias, None  # feedback is never trained


class FALinear(nn.Linear):
    """`nn.Linear` that teaches the layers below it by feedback alignment.

    Takes the arguments of `nn.Linear`, computes the same output and raises the same
    exceptions; complex numbers raise TypeError. An `nn.Linear`'s state loads with
    `strict=False`, and the feedback stays as drawn. A network's first layer needs no
    `FALinear`: nothing lies below to teach.

    B^T e is no derivative, so forward mode and second derivatives raise an error. Two cases
    of second derivatives are silently zero instead: nested `torch.func` transforms, and the
    gradient of a gradient of `output.sum()`, where the error is a constant. `torch.export`
    keeps only the forward pass: an exported program does not learn by feedback alignment.

    Attributes:
        weight: W, shape (out_features, in_features), trained.
        bias: b, shape (out_features,), trained; None with `bias=False`.
        feedback: B, shape (out_features, in_features), a buffer: saved in `state_dict`
            and moved by `.to`, but no parameter, so no optimizer ever changes it.
    """

    def reset_parameters(self) -> None:
        """Draw weight, bias and feedback; `nn.Linear.__init__` calls this, too."""
        super().reset_parameters()
        self.register_buffer("feedback", self.weight.detach().clone())
        super().reset_parameters()  # a second draw: weight and feedback are independent

    def forward(self, input: Tensor) -> Tensor:
        """Return input W^T + b: (..., in_features) -> (..., out_features)."""
        return FALinearFunction.apply(input, self.weight, self.bias, self.feedback)
