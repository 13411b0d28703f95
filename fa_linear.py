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

    A `torch.autograd.Function` is a computation whose backward pass one writes oneself. It
    is used by its `apply`, which takes the arguments of `forward`. PyTorch calls `forward`
    and `setup_context` then, and `backward` when a loss above it is differentiated. None of
    the three has a `self`: what one call has to keep for its backward pass, `ctx` holds.

    Rows are examples here, so a column equation such as B^T e reads e @ B in the code.

    Shapes: input (..., in_features), output (..., out_features), weight and feedback
    (out_features, in_features), bias (out_features,) or None; `...` may be empty.
    """

    generate_vmap_rule = True  # lets torch.func.vmap derive the function for many examples

    @staticmethod
    def forward(input, weight, bias, feedback):
        # The output does not depend on the feedback. It is an argument all the same, because
        # `setup_context` is given the arguments, and nothing else of the layer.
        if weight.is_complex():
            raise TypeError("feedback alignment is for real numbers")
        return F.linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        # `inputs` are the arguments of `forward`, in their order.
        input, _weight, _bias, feedback = inputs
        ctx.save_for_backward(input, feedback)  # backward has no need of the weight!

    @staticmethod
    @once_differentiable  # B^T e is no derivative: to differentiate it again is an error
    def backward(ctx, grad_output):
        # `grad_output` is e: for each output, how the loss changes with it. To be returned is
        # a gradient for each argument of `forward`, in their order, or None where none is
        # needed, as `ctx.needs_input_grad` says: the first layer's input, say, has no gradient.
        input, feedback = ctx.saved_tensors
        # Under autocast the error arrives in a lower precision than the saved tensors.
        input, feedback = input.to(grad_output.dtype), feedback.to(grad_output.dtype)
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = grad_output @ feedback  # <-- FA. BP: grad_output @ weight
        # The rest is as under BP: sums over the examples.
        errors, examples = as_rows(grad_output), as_rows(input)
        if ctx.needs_input_grad[1]:
            grad_weight = errors.T @ examples
        if ctx.needs_input_grad[2]:
            grad_bias = errors.sum(0)
        return grad_input, grad_weight, grad_bias, None  # feedback is never trained


def as_rows(tensor: Tensor) -> Tensor:
    """Return a tensor (..., features) as a matrix (examples, features), one row for a vector."""
    return torch.atleast_2d(tensor).flatten(0, -2)


class FALinear(nn.Linear):
    """`nn.Linear` that teaches the layers below it by feedback alignment.

    Takes the arguments of `nn.Linear`, computes the same output and raises the same
    exceptions. A network's first layer needs no `FALinear`: nothing lies below to teach.

    Attributes:
        weight: W, shape (out_features, in_features), trained.
        bias: b, shape (out_features,), trained; None with `bias=False`.
        feedback: B, shape (out_features, in_features), a buffer: saved in `state_dict`
            and moved by `.to`, but no parameter, so no optimizer ever changes it.

    A twin that learns by BP: give it the same weights, since the same seed does not (B is
    drawn as well). FA's state has the feedback besides, which `strict=False` passes over:

        twin = nn.Linear(20, 10)
        twin.load_state_dict(layer.state_dict(), strict=False)

    The other way round, it leaves the layer's feedback as it was drawn.

    A B of your own: `layer.feedback.copy_(...)`, or assign a tensor of the same shape. It may
    be computed from W: the message never carries B's graph.

    A convolution is a linear layer for all patches of an image (`height` and `width` are those
    of the output, and `layer` is an FALinear(channels * 5 * 5, out_channels)):

        patches = F.unfold(images, kernel_size=5).transpose(1, 2)  # (images, places, pixels)
        outputs = layer(patches).transpose(1, 2)  # (images, out_channels, places)
        maps = outputs.unflatten(2, (height, width))

    Limits: complex numbers raise TypeError. B^T e is no derivative, so forward mode and second
    derivatives raise an error. Two cases of second derivatives are silently zero instead:
    nested `torch.func` transforms, and the gradient of a gradient of `output.sum()`, where the
    error is a constant. `torch.compile` around a `torch.func` transform gives wrong gradients,
    also silently, unless `torch.compiler.allow_in_graph(FALinearFunction)` was called before.
    `torch.export` keeps only the forward pass: an exported program learns by BP. A module that
    uses a layer's weight without calling it, as `nn.MultiheadAttention` does with its
    `out_proj`, sends BP's messages. A layer built without initialisation (on the device
    `meta`, by `skip_init`) has an arbitrary B until `reset_parameters` draws one, or a state
    with a feedback is loaded.
    """

    def reset_parameters(self) -> None:
        """Draw weight, bias and feedback; `nn.Linear.__init__` calls this, too."""
        # B is drawn as `nn.Linear` draws its weight: it is the weight of another one.
        other = nn.Linear(
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        self.register_buffer("feedback", other.weight.detach())
        super().reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        """Return input W^T + b: (..., in_features) -> (..., out_features)."""
        return FALinearFunction.apply(input, self.weight, self.bias, self.feedback.detach())
