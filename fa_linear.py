"""Feedback alignment for one linear layer, as a drop-in for `torch.nn.Linear`.

Backpropagation (BP) teaches the layers below y = W x + b by a message: the error
e = dL/dy, sent back through the transpose of the forward weights:

    BP:  dL/dx = W^T e

Feedback alignment (FA) sends the error through a fixed random matrix B instead:

    FA:  B^T e, in place of dL/dx

(x is the layer's input, which README.md calls h. If the layer above is an FA layer, too, e is the
message that comes down from it, in place of dL/dy.)

The layer's own weights learn as under BP: dL/dW = e x^T, dL/db = e. While they do, W comes
to resemble B, and so W^T e comes to resemble the message B^T e. To see why, let x = W0 u be the
output of a layer below, and let the same example come twice, with the same error. lr is the
learning rate.

    The first time, W0 changes by -lr m u^T, where m = B^T e is the message.
    So the second time, W0 u is not x, but x + d, with d = -lr (m u^T) u = -lr (u.u) m.
    So this time W changes by -lr e (x + d)^T, which contains -lr e d^T = lr^2 (u.u) e m^T.

This part turns a W that is unrelated to B toward B, as the inner product of e m^T and B is positive.
(Multiply entry by entry, and add up: the sum of all e_i m_j B_ij is m.m, because the sum of
e_i B_ij over i is m_j.) The rest, -lr e x^T, knows nothing of B. README.md shows the same for many
examples together.

Source: T. P. Lillicrap, D. Cownden, D. B. Tweed, C. J. Akerman, "Random synaptic
feedback weights support error backpropagation for deep learning", Nature
Communications 7:13276 (2016), doi:10.1038/ncomms13276.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class FALinearFunction(torch.autograd.Function):
    """W x + b, with a backward pass that uses `feedback` (B) in place of `weight` (W).

    Rows are examples here: the equation W x reads x @ W.T in the code, and B^T e reads e @ B.

    A `torch.autograd.Function` is a computation whose backward pass one writes oneself. It is
    used by its `apply`, which takes the arguments of `forward`. For each use, PyTorch makes
    an object `ctx`, calls `forward`, and lets `setup_context` put into `ctx` what the backward
    pass will need. When a loss is differentiated, it gives `ctx` to `backward`. No object of
    the class itself is made, so that all three are static: `ctx` takes the place of `self`.

    Shapes: input (..., in_features), output (..., out_features), weight and feedback
    (out_features, in_features), bias (out_features,) or None; `...` may be empty.
    """

    @staticmethod
    def forward(input, weight, bias, feedback):
        if weight.is_complex():  # the formulas below would need conjugates
            raise TypeError("feedback alignment is for real numbers")
        # The output does not depend on the feedback. It is an argument only so that
        # `setup_context`, which is given the arguments, can save it for `backward`.
        return F.linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        # `inputs` are the arguments of `forward`, in their order; `output` is what it returned.
        input, _weight, _bias, feedback = inputs
        # `save_for_backward`, not ctx.input = input: PyTorch then frees the tensors after the
        # backward pass, and raises an error if one was changed in place in between.
        ctx.save_for_backward(input, feedback)  # backward has no need of the weight!

    @staticmethod
    @once_differentiable  # B^T e is no derivative: PyTorch refuses to differentiate it again
    def backward(ctx, grad_output):
        # `grad_output` is e, in the shape of the output. Returned is a gradient for each
        # argument of `forward`, in their order. `ctx.needs_input_grad` tells, in the same order,
        # for which one is needed. For others, such as a frozen weight, None is returned.
        input_needs, weight_needs, bias_needs, _ = ctx.needs_input_grad
        input, feedback = ctx.saved_tensors
        # In mixed precision (torch.autocast) the output of `forward`, and so the error, has a lower
        # precision than its arguments, and @ takes only tensors of one type. What is returned may
        # have the lower precision: PyTorch casts it to that of the argument.
        input, feedback = input.to(grad_output.dtype), feedback.to(grad_output.dtype)
        grad_input = grad_weight = grad_bias = None
        if input_needs:  # what is returned for it is the `grad_output` of the layer below
            grad_input = grad_output @ feedback  # <-- FA. BP: grad_output @ weight
        # The rest is as under BP: e x^T and e, summed over the examples.
        e_rows, x_rows = as_rows(grad_output), as_rows(input)
        if weight_needs:
            grad_weight = e_rows.T @ x_rows
        if bias_needs:
            grad_bias = e_rows.sum(0)
        return grad_input, grad_weight, grad_bias, None  # feedback is never trained

    generate_vmap_rule = True  # for users of torch.func.vmap; no part in training


def as_rows(tensor: Tensor) -> Tensor:
    """Return a tensor (..., features) as a matrix (n, features); a vector is one row."""
    return torch.atleast_2d(tensor).flatten(0, -2)


class FALinear(nn.Linear):
    """`nn.Linear` that teaches the layers below it by feedback alignment.

    Takes the arguments of `nn.Linear` and computes the same output. A network's first layer
    needs no `FALinear`: nothing lies below to teach.

    Attributes:
        weight: W, shape (out_features, in_features), trained.
        bias: b, shape (out_features,), trained; None with `bias=False`.
        feedback: B, shape (out_features, in_features), a buffer: saved in `state_dict`
            and moved by `.to`, but no parameter, so no optimizer ever changes it.

    A twin that learns by BP: copy the weights. (The same seed does not give the same weights,
    because an FALinear draws B as well.) `strict=False` is needed as the twin has no feedback.

        twin = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        twin.load_state_dict(layer.state_dict(), strict=False)

    A B of your own: write into the buffer, or assign a tensor of the same shape. It may be computed
    from W; no gradient flows through B.

        layer.feedback.copy_(my_feedback)
        layer.feedback = layer.weight.detach().sign() * layer.feedback.abs()

    To watch a layer in the middle of a network, let a hook compare the message that it sends, B^T e,
    with W^T e. PyTorch calls the hook in each backward pass, with e in `grad_output[0]`.

        from train_fa_vs_bp_linear_model import angle

        def print_angle(layer, grad_input, grad_output):
            e = grad_output[0]
            print(angle(e @ layer.feedback, e @ layer.weight).nanmean())

        layer.register_full_backward_hook(print_angle)

    A convolution applies a linear layer to each patch of an image. For patches of 5 x 5 pixels
    (height and width are those of the output):

        layer = FALinear(channels * 5 * 5, out_channels)
        patches = F.unfold(images, kernel_size=5).transpose(1, 2)  # (images, places, in_features)
        outputs = layer(patches).transpose(1, 2)  # (images, out_channels, places)
        maps = outputs.unflatten(2, (height, width))

    Limits, none of which plain training meets:
        - A complex weight is refused (TypeError), and so is forward mode, as in `torch.func.jvp`
          (NotImplementedError).
        - Second derivatives are refused (RuntimeError), as B^T e is no derivative. But PyTorch does
          not notice two kinds, and takes them for zero: those in nested `torch.func` transforms,
          and those of a loss such as `output.sum()`, whose e is a constant.
        - `torch.compile` around a `torch.func` transform gives wrong gradients, without an
          error, unless `torch.compiler.allow_in_graph(FALinearFunction)` was called before.
        - What does not call the layer learns by BP: a program made by `torch.export`, which keeps
          only the computation of the outputs, and `nn.MultiheadAttention`, which takes the weight
          of an FALinear that is its `out_proj`.
        - A layer that was never initialised (built on the device `meta`, or by `skip_init`) has
          an arbitrary B, until `reset_parameters` draws one or a state with one is loaded.
    """

    def reset_parameters(self) -> None:
        """Draw feedback, weight and bias. `nn.Linear.__init__` calls this, and so makes B."""
        # B is drawn as W is, but independently: it is the weight of a second layer, which is made
        # with the same arguments.
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
        # A user may have computed B from W without `detach`. Then B has a graph, into which autograd
        # goes even though `backward` returns None for B. The first step would free that graph, and
        # the second would fail.
        feedback = self.feedback.detach()
        return FALinearFunction.apply(input, self.weight, self.bias, feedback)
